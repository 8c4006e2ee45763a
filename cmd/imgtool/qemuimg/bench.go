package qemuimg

import (
	"math"
	"slices"
	"strconv"
)

func buildBench(p *parser) error {
	for _, n := range []struct {
		key, flag, what string
		most            int64
	}{
		{count, "--count", "request count", math.MaxInt32}, {depth, "--depth", "queue depth", math.MaxInt32}, {bytePattern, "", "pattern byte", math.MaxUint8},
		{flushInterval, "--flush-interval", "flush interval", math.MaxInt32},
	} {
		value, err := strconv.ParseInt(p.last(n.key), 0, 64)
		switch {
		case !p.has(n.key):
			continue
		case err != nil || value < 0 || value > n.most:
			return wrong("Invalid %s specified", n.what)
		case n.flag != "":
			p.value(n.flag, decimal(value))
		case p.has(write):
			p.value("--pattern", decimal(value)) // which reads have no use for
		}
	}
	for _, s := range []struct{ key, flag, what string }{
		{offset, "--offset", "offset"}, {bufferSize, "--buffer-size", "buffer size"}, {stepSize, "--step-size", "step_size"},
	} {
		if err := p.sized(s.key, s.flag, s.what); err != nil {
			return err
		}
		if n, err := parseSize(p.last(s.key)); err == nil && s.key != offset && n > math.MaxInt32 {
			return wrong("Invalid %s specified. Must be between 0 and %d.", s.what, math.MaxInt32)
		}
	}
	switch {
	case p.has(aio) && !slices.Contains([]string{"threads", "native", "io_uring"}, p.last(aio)):
		return wrong("Invalid aio option: %s", p.last(aio))
	case p.checkCaches() != nil:
		return wrong("Invalid cache mode")
	}
	if err := p.single(); err != nil {
		return err
	}
	if p.has(flushInterval) && !p.has(write) {
		return wrong("--flush-interval is only available in write tests")
	}
	if every, _ := strconv.ParseInt(p.or(flushInterval, "0"), 0, 64); every > 0 {
		if deep, _ := strconv.ParseInt(p.or(depth, "64"), 0, 64); every < deep {
			return wrong("Flush interval can't be smaller than depth")
		}
	}
	p.passFlag(write, "--write")
	return p.image(0, p.has(write))
}
