package inflate

const windowSize = 32 << 10 // bytes that a distance reaches back at most

// trace notes which bytes before a place in the output are referred to after it. The zero value is off.
type trace struct {
	seen *[windowSize]bool
	from int // index in core.out of the place; negative when the output has moved on
}

func (t *trace) end() { *t = trace{} }

// on reports whether what is decoded to op can refer to a byte before the place.
func (t *trace) on(op int) bool { return t.seen != nil && op-t.from < windowSize }

// fastTraced does what fastGo does, as far as matches are traced.
func fastTraced(c *core) {
	out := c.out
	c.out = out[:min(len(out), c.trace.from+windowSize+Slop)]
	fastGo(c)
	c.out = out
}

// note notes a match.
func (t *trace) note(op, dist, length int) {
	if t.seen == nil {
		return
	}
	before := dist - (op - t.from) // how far before the place the match's source begins
	for i := before; i > max(0, before-length); i-- {
		t.seen[i-1] = true
	}
}
