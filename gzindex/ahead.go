package gzindex

import (
	"context"
	"sync"
)

// readAhead decodes into the cache what is likely to be read next.
type readAhead struct {
	d       *Device
	workers int
	ctx     context.Context // ends with the Device
	cancel  context.CancelFunc
	wait    sync.WaitGroup

	mu      sync.Mutex // guards what follows
	stopped bool
	running int     // workers
	queue   []int64 // places in the image; the span of each is decoded
	streams [maxStreams]stream
	oldest  int
}

const (
	maxStreams = 8       // readers that are told apart
	maxQueue   = 64      // spans
	maxSkip    = 4 << 20 // bytes that a reader may leave out and still go forward
)

// stream is a reader that goes forward.
type stream struct {
	end   int64 // of its last read
	reads int
	read  int64 // bytes; as many are decoded ahead, within limits
	ahead int64 // up to here everything was queued
}

func (a *readAhead) init(d *Device, workers int) {
	a.d, a.workers = d, workers
	a.ctx, a.cancel = context.WithCancel(context.Background())
}

// stop ends the workers and waits for them.
func (a *readAhead) stop() {
	a.mu.Lock()
	a.stopped = true
	a.mu.Unlock()
	a.cancel()
	a.wait.Wait()
}

// follow is told of each read, and queues what comes after it where it continues one before.
func (a *readAhead) follow(off, n int64) {
	if n == 0 || a.workers == 1 && a.d.front == nil {
		return // the reader alone decodes as fast
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.streamAt(off)
	s.end, s.read, s.reads = off+n, s.read+n, s.reads+1
	if s.reads < 3 {
		return
	}
	s.ahead = max(s.ahead, s.end)
	until := min(s.end+min(s.read, int64(a.workers+1)*DefaultSpan, a.d.cache.limit/4), a.d.size)
	if s.ahead < until {
		s.ahead = a.push(s.ahead, until)
	}
}

// streamAt returns the stream that a read at off belongs to, or a new one.
func (a *readAhead) streamAt(off int64) *stream {
	for i := range a.streams {
		if s := &a.streams[i]; s.reads > 0 && off >= s.end && off-s.end <= maxSkip {
			return s
		}
	}
	s := &a.streams[a.oldest]
	a.oldest = (a.oldest + 1) % maxStreams
	*s = stream{}
	return s
}

// want queues [off, end).
func (a *readAhead) want(off, end int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.push(off, end)
}

// push queues the spans that begin in [off, end) and the one around off, and returns where the last one ends.
func (a *readAhead) push(off, end int64) int64 {
	for off < end && len(a.queue) < maxQueue && !a.stopped {
		a.queue = append(a.queue, off)
		if sp, ok := a.d.spanAt(off); ok {
			off = sp.image + sp.len
		} else {
			off += blockLen
		}
		if a.running < a.workers {
			a.running++
			a.wait.Go(a.work)
		}
	}
	return off
}

// work decodes what is queued.
func (a *readAhead) work() {
	for {
		a.mu.Lock()
		if len(a.queue) == 0 || a.stopped {
			a.running--
			a.mu.Unlock()
			return
		}
		off := a.queue[0]
		a.queue = a.queue[1:]
		a.mu.Unlock()
		a.decode(off)
	}
}

// decode decodes the span in which off lies, from off on. What fails fails again when it is read.
func (a *readAhead) decode(off int64) {
	end := off + 1
	if sp, ok := a.d.spanAt(off); ok {
		end = min(sp.image+sp.len, off+a.d.cache.limit/4)
	}
	for off < end {
		data, at, err := a.d.piece(a.ctx, off)
		if err != nil {
			return
		}
		off = at + int64(len(data))
	}
}
