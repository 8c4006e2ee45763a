package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/fusefs"
)

// writing is how an image is opened that others write to for as long as they like.
type writing struct {
	*app
	from     reading
	readOnly bool // also, after open, where the image cannot be written
	cow      bool
	cowDir   string
}

// mounting is one run of mount.
type mounting struct {
	writing
	options fusefs.Options
	command string
	fork    bool
	pidFile string
}

// mountInfo is what has been mounted, in JSON. The size is in bytes.
type mountInfo struct {
	File     string `json:"file"`
	Size     int64  `json:"size"`
	ReadOnly bool   `json:"read-only"`
}

func newMount(a *app) *cobra.Command {
	m := &mounting{writing: writing{app: a}}
	c := &cobra.Command{
		Use:   "mount [flags] IMAGE MOUNTPOINT",
		Short: "Show the disk in an image as one file, by FUSE",
		Long: `Show the disk in an image as one file: below MOUNTPOINT where that is a folder, in place of it where it is a regular file. IMAGE is whatever
can be opened: a chain, an NBD URI, a server of its own as in "[ nbdkit memory 1G ]", which ends with the mount.

Programs can do with the file what they do with a raw image: make, check and loop-mount file systems, partition it, boot from it. fsync makes
durable what was written, punched holes are freed where the image can do so, and holes are found by SEEK_HOLE. It has the size of the disk and cannot
be made shorter or longer.

The program runs until the file is unmounted ("imgtool unmount MOUNTPOINT"), or SIGINT or SIGTERM ends it: at once where no program has the file open,
else as soon as the last has closed it; a second signal does not wait. Images that cannot be written are mounted read-only.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 4 the image is corrupt, 5 a reference is refused; with --run that of the command.`,
		Example: `  imgtool mount disk.qcow2 /mnt/image
  imgtool mount disk.raw.gz::gz::part=name=boot /mnt/image --run 'e2fsck -f "$file"'
  imgtool mount --cow --fork nbd://server/disk /mnt/image`,
		Args: exactly(2),
		RunE: func(c *cobra.Command, args []string) error {
			if err := m.checkUse(); err != nil {
				return usageOf(c, err)
			}
			if m.fork && m.command != "" {
				return usageOf(c, errors.New("--fork and --run exclude each other"))
			}
			if n := m.options.Name; n == "" || n != filepath.Base(n) || n == "." || n == ".." {
				return usageOf(c, fmt.Errorf("--name %q: this cannot be the name of a file", n))
			}
			return m.run(c.Context(), args[0], args[1])
		},
	}
	m.flags(c)
	f := c.Flags()
	f.StringVar(&m.options.Name, "name", fusefs.DefaultName, "name of the file, where MOUNTPOINT is a folder")
	f.BoolVar(&m.options.AllowOther, "allow-other", false, "let other users read the file, and write it")
	f.StringVar(&m.command, "run", "", "shell command to run beside the mount, with $file; the mount ends with it")
	f.BoolVar(&m.fork, "fork", false, "go to the background once the file is there")
	f.StringVar(&m.pidFile, "pid-file", "", "write the process number here once the file is there")
	return c
}

func (m *mounting) run(ctx context.Context, image, at string) (err error) {
	if m.fork && !inBackground() {
		return startInBackground(ctx)
	}
	dev, name, err := m.open(ctx, image)
	if err != nil {
		return err
	}
	mounted := false
	defer func() {
		if err = errors.Join(err, dev.Close()); mounted {
			atEnd(&err)
		}
	}()
	m.options.Log, m.options.ReadOnly = m.log(), m.readOnly
	life := ctx
	if m.command != "" {
		life = context.WithoutCancel(ctx) // a signal ends the command first
	}
	mount, err := fusefs.New(life, dev, at, m.options)
	if err != nil {
		return err
	}
	mounted = true
	remove, err := m.announce(mountInfo{mount.Path(), dev.Size(), m.readOnly})
	if err == nil && m.command != "" {
		err = runBeside(ctx, m.app, m.command, "file="+mount.Path())
	}
	if err != nil || m.command != "" {
		err = errors.Join(err, m.end(mount))
	}
	return errors.Join(err, nameFile(name, mount.Wait()), remove())
}

// announce tells everybody who waits for it that the file is there. What it returns removes the file with the number of the process.
func (m *mounting) announce(info mountInfo) (remove func() error, err error) {
	if remove, err = writePIDFile(m.pidFile); err != nil {
		return remove, err
	}
	if err := m.tell(info); err != nil {
		return remove, err
	}
	notify("READY=1\nMAINPID=" + strconv.Itoa(os.Getpid()))
	if m.fork {
		return remove, leaveForeground()
	}
	return remove, nil
}

// tell prints what has been mounted.
func (m *mounting) tell(info mountInfo) error {
	switch {
	case m.json:
		if err := m.printJSON(info); err != nil {
			return err
		}
	case !m.quiet && m.command == "":
		m.printf("%s", info.File)
	}
	return m.flush()
}

// end unmounts the file: at once, or where a program has it open, as soon as that has closed it.
func (m *mounting) end(mount *fusefs.Mount) error {
	err := mount.Unmount()
	if errors.Is(err, block.ErrBusy) {
		m.log().Warn("still in use: it is unmounted when the last program has closed it", "path", mount.Path())
		err = mount.Detach()
	}
	return err
}

// runBeside runs a shell command with additions to the environment and returns its exit code as an error, nil for 0. It ends when ctx does.
func runBeside(ctx context.Context, a *app, command string, environment ...string) error {
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.stderr
	cmd.Env = append(os.Environ(), environment...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	dieWithParent(cmd)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the kernel watches the thread that starts the command, and not the process
		defer runtime.UnlockOSThread()
		done <- cmd.Run()
	}()
	err := <-done
	if cmd.ProcessState == nil {
		return err // it could not be started
	}
	if code := exitStatus(cmd.ProcessState); code != 0 {
		return &codeError{code: code}
	}
	return nil
}

func newUnmount(a *app) *cobra.Command {
	var lazy bool
	c := &cobra.Command{
		Use:   "unmount [flags] MOUNTPOINT",
		Short: "Unmount what mount has mounted",
		Long: `Unmount what "imgtool mount" has mounted at MOUNTPOINT, a folder or a file. While a program has the file open, it fails, or with --lazy takes
the file away and leaves it to the program until that has closed it.

When it returns, the program that has mounted the file may still be making durable what was written: it ends when that is done.`,
		Args: exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			err := fusefs.Unmount(args[0], lazy)
			if errors.Is(err, block.ErrBusy) {
				err = block.WithHint(err, "--lazy unmounts it as soon as the last program has closed it")
			}
			return err
		},
	}
	c.Flags().BoolVar(&lazy, "lazy", false, "unmount it even while a program has it open, as soon as the last has closed it")
	return c
}

// flags adds the flags of w to a command.
func (w *writing) flags(c *cobra.Command) {
	w.from.flags(c)
	f := c.Flags()
	f.BoolVarP(&w.readOnly, "read-only", "r", false, "let nobody write")
	f.BoolVar(&w.cow, "cow", false, "let programs write, and throw it away at the end: the image is opened read-only")
	f.StringVar(&w.cowDir, "cow-dir", "", "folder for the temporary file of --cow; without it TMPDIR or /var/tmp")
}

// checkUse refuses flags that do not fit each other.
func (w *writing) checkUse() error {
	switch {
	case w.cow && w.readOnly:
		return errors.New("--cow is for writing, and -r forbids it")
	case w.cowDir != "" && !w.cow:
		return errors.New("--cow-dir is for --cow")
	case w.from.share && !w.readOnly && !w.cow:
		return errors.New("--force-share is for reading: say -r or --cow")
	}
	return nil
}

// open opens the image: for writing where that is allowed and possible.
func (w *writing) open(ctx context.Context, image string) (dev block.Device, name string, err error) {
	o := w.openOptions(w.from)
	o.Write = !w.readOnly && !w.cow && !isStandard(image)
	img, err := oneOfAnyOffset(chain.Open(ctx, image, o))
	if o.Write && isReadOnly(err) {
		reason := err
		o.Write = false
		if img, err = oneOfAnyOffset(chain.Open(ctx, image, o)); err == nil {
			w.log().Info("opened read-only", "image", img.Name(), "why", message(reason))
		}
	}
	if err != nil {
		return nil, "", err
	}
	dev = img.Device
	if w.cow {
		over, err := chain.ThrowAway(dev, w.cowDir)
		if err != nil {
			return nil, "", errors.Join(nameError(img, err), dev.Close())
		}
		dev = over
	}
	w.readOnly = w.readOnly || !dev.Info().Caps.Write
	return dev, img.Name(), nil
}
