package inflate

// modAdler is the largest prime below 65536: RFC 1950 section 9.
const modAdler = 65521

// adlerRun is how many bytes can be summed before the second sum might not fit into 32 bits: 5552, rounded down to adlerBlock.
const (
	adlerBlock = 32
	adlerRun   = 5552 / adlerBlock * adlerBlock
)

// updateAdler returns the Adler-32 of what sum is the Adler-32 of, followed by p.
func updateAdler(sum uint32, p []byte) uint32 {
	a, b := sum&0xffff, sum>>16
	for len(p) > 0 {
		run := p[:min(len(p), adlerRun)]
		p = p[len(run):]
		if blocks := run[:len(run)&^(adlerBlock-1)]; len(blocks) > 0 {
			da, db := adlerBlocks(blocks)
			b += uint32(len(blocks))*a + db
			a += da
			run = run[len(blocks):]
		}
		for _, v := range run {
			a += uint32(v)
			b += a
		}
		a %= modAdler
		b %= modAdler
	}
	return b<<16 | a
}

// adlerBlocksGo returns the sum of the bytes of p, and of each byte times the number of bytes from it to the end of p. p is whole blocks, adlerRun
// bytes at most.
func adlerBlocksGo(p []byte) (a, b uint32) {
	for ; len(p) >= 8; p = p[8:] {
		q := (*[8]byte)(p)
		a += uint32(q[0])
		b += a
		a += uint32(q[1])
		b += a
		a += uint32(q[2])
		b += a
		a += uint32(q[3])
		b += a
		a += uint32(q[4])
		b += a
		a += uint32(q[5])
		b += a
		a += uint32(q[6])
		b += a
		a += uint32(q[7])
		b += a
	}
	return a, b
}
