package inflate

// modAdler is the largest prime below 65536: RFC 1950 section 9.
const modAdler = 65521

// adlerRun is how many bytes can be summed before the second sum may not fit into 32 bits.
const adlerRun = 5552

// updateAdler returns the Adler-32 of what sum is the Adler-32 of, followed by p.
func updateAdler(sum uint32, p []byte) uint32 {
	a, b := sum&0xffff, sum>>16
	for len(p) > 0 {
		run := p[:min(len(p), adlerRun)]
		p = p[len(run):]
		for len(run) >= 8 {
			q := (*[8]byte)(run)
			for _, v := range q {
				a += uint32(v)
				b += a
			}
			run = run[8:]
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
