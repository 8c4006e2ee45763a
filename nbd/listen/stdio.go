package listen

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"time"
)

// Stdio makes a connection of the two ends that a program gets as its standard input and output: of one socket, or of two pipes. The files are the
// connection's afterwards.
func Stdio(in, out *os.File) (net.Conn, error) {
	ii, err := in.Stat()
	if err != nil {
		return nil, err
	}
	oi, err := out.Stat()
	if err != nil {
		return nil, err
	}
	if ii.Mode()&fs.ModeSocket != 0 && os.SameFile(ii, oi) {
		c, err := net.FileConn(in)
		if err != nil {
			return nil, err
		}
		return c, errors.Join(in.Close(), out.Close())
	}
	if in, err = pollable(in); err != nil {
		return nil, err
	}
	if out, err = pollable(out); err != nil {
		return nil, err
	}
	return &pipes{in, out}, nil
}

// pipes is a connection over two files.
type pipes struct{ in, out *os.File }

func (p *pipes) Read(b []byte) (int, error)  { return p.in.Read(b) }
func (p *pipes) Write(b []byte) (int, error) { return p.out.Write(b) }
func (p *pipes) Close() error                { return errors.Join(p.in.Close(), p.out.Close()) }
func (p *pipes) LocalAddr() net.Addr         { return pipesAddr{} }
func (p *pipes) RemoteAddr() net.Addr        { return pipesAddr{} }

func (p *pipes) SetDeadline(t time.Time) error {
	return errors.Join(p.SetReadDeadline(t), p.SetWriteDeadline(t))
}

func (p *pipes) SetReadDeadline(t time.Time) error  { return p.in.SetReadDeadline(t) }
func (p *pipes) SetWriteDeadline(t time.Time) error { return p.out.SetWriteDeadline(t) }

// pipesAddr is the address of both ends.
type pipesAddr struct{}

func (pipesAddr) Network() string { return "pipe" }
func (pipesAddr) String() string  { return "standard input and output" }
