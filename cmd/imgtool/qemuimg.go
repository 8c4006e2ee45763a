package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"

	"github.com/imgtool/imgtool/cmd/imgtool/qemuimg"
	"github.com/imgtool/imgtool/formats/all"
)

// qemuImgName is the name under which the program is qemu-img, be it its own or that of its first argument.
const qemuImgName = "qemu-img"

// asQemuImg returns the arguments of a program, and whether they are those of qemu-img.
func asQemuImg(program []string) (args []string, is bool) {
	base := filepath.Base(program[0])
	if strings.TrimSuffix(strings.ToLower(base), ".exe") == qemuImgName {
		return program[1:], true
	}
	if len(program) > 1 && program[1] == qemuImgName {
		return program[2:], true
	}
	return program[1:], false
}

// beQemuImg makes the program qemu-img: its arguments become those of the same call of imgtool, or none where all is done.
// References are followed wherever they lead, as they are there.
func (a *app) beQemuImg() error {
	registry := qemuimg.Formats(all.Drivers())
	call, err := qemuimg.Parse(a.args, registry)
	a.qemu, a.args = call, nil
	if err != nil {
		return err
	}
	text := ""
	switch call.Command {
	case qemuimg.Help:
		text = qemuimg.HelpText(programVersion(), registry)
	case qemuimg.Version:
		text = qemuimg.VersionText(programVersion())
	case qemuimg.Options:
		text = qemuimg.OptionsText(registry.Lookup(call.Format))
	default:
		a.json = call.JSON
		a.args = append([]string{call.Args[0], "--allow-references"}, call.Args[1:]...)
		a.percent = &percent{app: a, shown: call.Progress}
		a.percent.begin()
	}
	_, err = a.out.WriteString(text)
	return err
}

// percent shows progress as qemu-img does: on standard output, each time over the last, and where that is not asked for, whenever a signal comes.
type percent struct {
	*app
	shown bool

	mu     sync.Mutex
	now    float64
	last   float64 // that has been printed
	signal func()  // stops listening to signals
}

func (p *percent) begin() {
	if p.shown {
		p.print()
	} else if !p.qemu.Quiet {
		p.signal = onStatusSignal(func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.print()
		})
	}
}

// report takes note of how far something is.
func (p *percent) report(done, total int64) {
	if total <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = float64(done) / float64(total) * 100
	if p.shown && p.now-p.last >= 1 {
		p.print()
	}
}

func (p *percent) print() {
	p.last = p.now
	fmt.Fprintf(p.stdout, "    (%.2f/100%%)\r", p.now)
}

// end ends the line; err is how the command ended.
func (p *percent) end(err error) {
	if p.signal != nil {
		p.signal()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.shown {
		return
	}
	if err == nil {
		p.now = 100
		p.print()
	}
	fmt.Fprintln(p.stdout)
}

// qemuLog is a log whose lines look like those of qemu-img.
type qemuLog struct{ *app }

func (l qemuLog) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }
func (l qemuLog) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l qemuLog) WithGroup(string) slog.Handler                    { return l }

func (l qemuLog) Handle(_ context.Context, r slog.Record) error {
	var about strings.Builder
	r.Attrs(func(at slog.Attr) bool {
		fmt.Fprintf(&about, " %s=%v", at.Key, at.Value)
		return true
	})
	_, err := fmt.Fprintf(l.stderr, "qemu-img: warning: %s%s\n", r.Message, &about)
	return err
}
