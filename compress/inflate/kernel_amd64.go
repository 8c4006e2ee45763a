//go:build !purego

package inflate

import "golang.org/x/sys/cpu"

// hasBMI2 says whether fastBMI2 can run, which also needs BMI1 and SSSE3: every processor with BMI2 has them.
var hasBMI2 = cpu.X86.HasBMI2 && cpu.X86.HasBMI1 && cpu.X86.HasSSSE3

// nearTable serves matches with distances below 16.
type nearTable struct {
	spread [16][16]uint8 // spread[d] shuffles 16 bytes so that the first d repeat
	stride [16]uint8     // stride[d] is the largest multiple of d up to 16
}

var near = func() (t nearTable) {
	for d := 1; d < 16; d++ {
		for i := range 16 {
			t.spread[d][i] = uint8(i % d)
		}
		t.stride[d] = uint8(16 - 16%d)
	}
	return t
}()

// fastBMI2 does what fastGo does, but leaves bits as they were: only ip, n and op are right.
//
//go:noescape
func fastBMI2(c *core, near *nearTable)

// fastMost is how much room fastBMI2 is given at a time: a goroutine in assembly cannot be stopped, and a collection of garbage waits for it.
const fastMost = 1 << 20

// fast is the loop for where there is plenty of input and output.
func fast(c *core) {
	if !hasBMI2 {
		fastGo(c)
		return
	}
	out := c.out
	c.out = out[:min(len(out), c.op+fastMost)]
	fastBMI2(c, &near)
	c.out = out
	at := c.ip*8 - c.count()
	c.ip = at / 8
	c.bits, c.n = 0, 0
	c.top()
	c.drop(at % 8)
}

var hasAVX2 = cpu.X86.HasAVX2

// adlerBlocksAVX2 does what adlerBlocksGo does. p is not empty.
//
//go:noescape
func adlerBlocksAVX2(p []byte) (a, b uint32)

func adlerBlocks(p []byte) (a, b uint32) {
	if hasAVX2 {
		return adlerBlocksAVX2(p)
	}
	return adlerBlocksGo(p)
}
