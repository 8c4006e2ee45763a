package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
)

// serving is one run of serve.
type serving struct {
	*app
	from reading

	// what is served
	names        []string // one for each image, or none
	descriptions []string // one for each image, or none
	fallback     string   // the export that "" stands for
	folder       string
	readOnly     bool
	cow          bool
	cowDir       string
	bitmaps      []string
	depth        choice

	// where
	hosts      []string
	port       string
	sockets    []string
	socketMode fileMode
	vsock      string
	stdio      bool

	// to whom
	tls           string
	certificates  string
	pskFile       string
	verifyPeer    bool
	maxClients    int
	handshakeTime time.Duration
	idleTime      time.Duration

	// how long
	fork           bool
	pidFile        string
	logFile        string
	exitWithParent bool
	exitLast       bool
	drainTime      time.Duration
	command        string
	printURI       bool
	metrics        string

	logger *slog.Logger
	images int  // how many share the memory for caches
	placed bool // a flag says where to listen
}

const (
	defaultPort      = "10809"
	defaultDrainTime = 10 * time.Second
	folderShare      = 8 // files of a folder that the memory for caches is reckoned for
)

func newServe(a *app) *cobra.Command {
	s := &serving{app: a}
	c := &cobra.Command{
		Use:     "serve [flags] {IMAGE... | --dir FOLDER}",
		Short:   "Serve images to NBD clients",
		Long:    serveLong,
		Example: serveExample,
		Args:    cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if err := s.checkUse(c, args); err != nil {
				return usageOf(c, err)
			}
			return s.run(c.Context(), args)
		},
	}
	s.flags(c)
	return c
}

const serveLong = `Serve images to NBD clients: each as it would be read, whatever it is stored in. All connections share one open image and its caches.

One IMAGE is the default export, whose name is empty. Several need a name each, by -e before each or in the same order. --dir serves the regular
files of a folder instead, by their names, and opens each while somebody uses it.

Images that can be written are served so; -r forbids it, and --cow throws what is written away at the end. Without -i, -p, -U, --vsock, -s
or --run the server listens on TCP port 10809 of this machine alone: -i 0.0.0.0 and -i :: open it to the network, without any protection but --tls.
Sockets that systemd hands over (LISTEN_FDS) take the place of all these.

SIGTERM and SIGINT end it: requests in flight are answered, what was written is made durable; a second one cuts them off. SIGUSR1 prints statistics
to standard error.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 4 an image is corrupt, 5 a reference is refused; with --run that of the command.`

const serveExample = `  imgtool serve disk.qcow2
  imgtool serve -r -i 0.0.0.0 --tls=require --tls-certificates /etc/pki/imgtool disk.raw.gz
  imgtool serve -U /run/disk.sock -e root disk.gz::gz::part=2 -e data data.qcow2
  imgtool serve --cow disk.qcow2 --run 'nbdcopy "$uri" copy.raw'
  imgtool serve --dir /srv/images -r`

// flags adds the flags of serve.
func (s *serving) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.progress, "progress", "", "") // whose letter is that of --port here
	_ = f.MarkHidden("progress")                 // it exists

	s.from.formatFlag(c)
	f.BoolVar(&s.from.share, "force-share", false, "serve the image although another program may be writing it, read-only")
	f.StringVar(&s.from.index, "index-file", "", "index of a gzip file that another program made: read where it exists, written where it does not")
	f.StringArrayVarP(&s.names, "export", "e", nil, "name of an export: one for each IMAGE, in their order")
	f.StringArrayVar(&s.descriptions, "description", nil, "what clients are told of an export: one for each IMAGE, in their order")
	f.StringVar(&s.fallback, "default-export", "", "name of the export that clients get which ask for none")
	f.StringVar(&s.folder, "dir", "", "serve the regular files of this folder that are not hidden, by their names")
	f.BoolVarP(&s.readOnly, "read-only", "r", false, "serve read-only")
	f.BoolVar(&s.cow, "cow", false, "let clients write, and throw it away at the end: images are opened read-only")
	f.StringVar(&s.cowDir, "cow-dir", "", "folder for the temporary files of --cow; without it TMPDIR or /var/tmp")
	f.StringArrayVarP(&s.bitmaps, "bitmap", "B", nil, "offer this bitmap of the image as qemu:dirty-bitmap:NAME")
	f.VarP(&s.depth, "allocation-depth", "A", "offer the context qemu:allocation-depth; without the flag for images with a backing file or --cow")
	f.Lookup("allocation-depth").NoOptDefVal = "true"

	f.StringArrayVarP(&s.hosts, "interface", "i", nil, "address or name on which to listen; \"*\" is every address of this machine")
	f.StringVarP(&s.port, "port", "p", defaultPort, "TCP port, a number or a name; 0 for any that is free")
	f.StringArrayVarP(&s.sockets, "unix", "U", nil, "path of a Unix socket, or - for a private one")
	f.Var(&s.socketMode, "socket-mode", "permission bits of the Unix sockets, in octal")
	f.StringVar(&s.vsock, "vsock", "", "[CID:]PORT for virtual machines")
	f.BoolVarP(&s.stdio, "single", "s", false, "serve one client on standard input and output")

	f.StringVar(&s.tls, "tls", "", "off, on (clients may ask for it), or require, which certificates or keys mean")
	f.StringVar(&s.certificates, "tls-certificates", "", "folder with ca-cert.pem, server-cert.pem and server-key.pem")
	f.StringVar(&s.pskFile, "tls-psk", "", "file of keys, NAME:HEX in each line")
	f.BoolVar(&s.verifyPeer, "tls-verify-peer", false, "want a certificate of clients that ca-cert.pem has signed")
	f.IntVar(&s.maxClients, "max-clients", 0, "connections at a time, 0 for any number; more wait")
	f.DurationVar(&s.handshakeTime, "handshake-timeout", server.DefaultHandshakeTimeout, "how long a client may take to choose an export; 0 for ever")
	f.DurationVar(&s.idleTime, "idle-timeout", 0, "end connections on which nothing happens for so long; 0 never")

	f.BoolVar(&s.fork, "fork", false, "go to the background once the server is ready")
	f.StringVar(&s.pidFile, "pid-file", "", "write the process number here once the server is ready")
	f.StringVar(&s.logFile, "log-file", "", "append messages to this file, in place of standard error")
	f.BoolVar(&s.exitWithParent, "exit-with-parent", false, "end when the process ends that started this one")
	f.BoolVar(&s.exitLast, "exit-last", false, "end after the last client has left")
	f.DurationVar(&s.drainTime, "drain-timeout", defaultDrainTime, "how long clients may take to leave when the server ends")
	f.StringVar(&s.command, "run", "", "shell command to run beside the server, with $uri, $nbd, $unixsocket, $port, $exportname and $tls; the server ends with it")
	f.BoolVar(&s.printURI, "print-uri", false, "print where the exports are")
	f.StringVar(&s.metrics, "metrics", "", "HOST:PORT at which /metrics (Prometheus) and /stats (JSON) are served over HTTP")
}

// checkUse refuses flags that do not fit each other or the images.
func (s *serving) checkUse(c *cobra.Command, args []string) error {
	given := c.Flags().Changed
	one := len(args)
	switch {
	case one == 0 && s.folder == "":
		return errors.New("nothing to serve: say IMAGE, or --dir FOLDER")
	case one > 0 && s.folder != "":
		return errors.New("--dir takes the place of IMAGE")
	case s.folder != "" && (len(s.names) > 0 || len(s.descriptions) > 0 || s.from.index != ""):
		return errors.New("-e, --description and --index-file are for IMAGE, not for --dir")
	case one > 1 && len(s.names) == 0:
		return fmt.Errorf("%d images need a name each: say -e NAME before each of them", one)
	case len(s.names) > 0 && len(s.names) != one:
		return fmt.Errorf("%s for %s: each image needs one -e", plural(len(s.names), "name"), plural(one, "image"))
	case len(s.descriptions) > 0 && len(s.descriptions) != one:
		return fmt.Errorf("%s for %s: --description is for all of them or for none", plural(len(s.descriptions), "description"), plural(one, "image"))
	case one > 1 && s.from.index != "":
		return errors.New("--index-file is for one IMAGE")
	case s.cow && s.readOnly:
		return errors.New("--cow is for writing, and -r forbids it")
	case s.cow && len(s.bitmaps) > 0:
		return errors.New("--bitmap does not know what clients write with --cow")
	case s.cowDir != "" && !s.cow:
		return errors.New("--cow-dir is for --cow")
	case s.from.share && !s.readOnly && !s.cow:
		return errors.New("--force-share is for reading: say -r or --cow")
	case s.fork && slices.ContainsFunc(args, isStandard):
		return errors.New("standard input cannot be served from the background")
	case s.stdio && slices.ContainsFunc(args, isStandard):
		return errors.New("standard input cannot be both the image and the client")
	case s.maxClients < 0 || s.handshakeTime < 0 || s.idleTime < 0 || s.drainTime < 0:
		return errors.New("--max-clients and the times cannot be negative")
	}
	if err := s.checkNames(); err != nil {
		return err
	}
	if err := s.checkTLS(); err != nil {
		return err
	}
	return s.checkPlaces(given)
}

// checkNames refuses names that no client can ask for, or that two images have.
func (s *serving) checkNames() error {
	seen := map[string]bool{}
	for _, name := range s.names {
		switch {
		case seen[name]:
			return fmt.Errorf("-e %q: two images cannot have one name", name)
		case len(name) > wire.MaxString || !utf8.ValidString(name) || strings.ContainsRune(name, 0):
			return fmt.Errorf("-e %q: a name is UTF-8 of at most %d bytes", name, wire.MaxString)
		}
		seen[name] = true
	}
	for _, d := range s.descriptions {
		if len(d) > wire.MaxString || !utf8.ValidString(d) {
			return fmt.Errorf("--description %q: this is UTF-8 of at most %d bytes", d, wire.MaxString)
		}
	}
	if s.fallback != "" && s.folder == "" && !seen[s.fallback] {
		return fmt.Errorf("--default-export %q: no image has this name", s.fallback)
	}
	if s.fallback != "" && seen[""] {
		return errors.New("--default-export: an image has the empty name already")
	}
	return nil
}

// Values of --tls; $tls of --run is the place in tlsModes.
const (
	tlsOff     = "off"
	tlsOn      = "on"
	tlsRequire = "require"
)

func tlsModes() []string { return []string{tlsOff, tlsOn, tlsRequire} }

// checkTLS refuses flags about TLS that do not fit each other. Who has certificates or keys and says no more wants every client to use them.
func (s *serving) checkTLS() error {
	proof := s.certificates != "" || s.pskFile != ""
	if s.tls == "" {
		s.tls = tlsOff
		if proof {
			s.tls = tlsRequire
		}
	}
	switch {
	case !slices.Contains(tlsModes(), s.tls):
		return fmt.Errorf("--tls=%s: say off, on or require", s.tls)
	case s.tls != tlsOff && !proof:
		return fmt.Errorf("--tls=%s needs --tls-certificates or --tls-psk", s.tls)
	case s.certificates != "" && s.pskFile != "":
		return errors.New("--tls-certificates and --tls-psk exclude each other")
	case s.verifyPeer && s.certificates == "":
		return errors.New("--tls-verify-peer is for --tls-certificates")
	}
	return nil
}

// run serves until something ends it.
func (s *serving) run(ctx context.Context, args []string) (err error) {
	if s.fork && !inBackground() {
		if _, err := s.inherited(); err != nil {
			return err
		}
		return startInBackground(ctx)
	}
	if err := s.openLog(); err != nil {
		return err
	}
	s.images = max(1, len(args))
	if s.folder != "" {
		s.images = folderShare
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx)) // a signal ends the server in its own time
	defer end()
	what, err := s.openExports(ctx, life, args)
	if err != nil {
		return err
	}
	serves := false
	defer func() {
		if err = errors.Join(err, what.close(life)); serves {
			atEnd(&err)
		}
	}()
	r := &running{serving: s, life: life, ends: make(chan error, 1)}
	if s.exitLast {
		c := &counted{exports: what}
		c.left = func() { r.tasks.Go(func() { r.last(c.used.Load) }) }
		what = c
	}
	if r.server, err = s.newServer(what); err != nil {
		return err
	}
	r.catchSignals()
	defer r.release()
	if err := ctx.Err(); err != nil { // a signal has come before they were caught
		return err
	}
	if s.stdio {
		serves = true
		return r.serveSingle()
	}
	if r.listeners, err = s.listen(ctx); err != nil {
		return err
	}
	serves = true
	return r.serve(ctx)
}

// openExports opens what is served. Folders are opened for the life of the server.
func (s *serving) openExports(ctx, life context.Context, args []string) (exports, error) {
	if s.folder != "" {
		return s.openFolder(life)
	}
	return s.openImages(ctx, args)
}

// cacheMemory returns what the caches of one layer of one image may hold, in bytes.
func (s *serving) cacheMemory() int64 { return int64(s.memory) / 4 / int64(s.images) }

// newServer returns a server for exports.
func (s *serving) newServer(what exports) (*server.Server, error) {
	c := server.Config{
		Open: what.open, List: what.list, MaxClients: s.maxClients, HandshakeTimeout: s.handshakeTime, IdleTimeout: s.idleTime,
		Memory: min(server.DefaultMemory, int64(s.memory)/4), Log: s.logger, TLSRequired: s.tls == tlsRequire,
	}
	if s.handshakeTime == 0 {
		c.HandshakeTimeout = -1
	}
	if s.tls != tlsOff {
		t, err := secure.NewServer(secure.ServerConfig{Certificates: s.certificates, PSKFile: s.pskFile, VerifyClient: s.verifyPeer})
		if err != nil {
			return nil, err
		}
		c.TLS = t
	}
	return server.New(c), nil
}

// openLog makes the logger: to standard error, or to the file of --log-file.
func (s *serving) openLog() error {
	w := s.stderr
	if s.logFile != "" {
		f, err := os.OpenFile(s.logFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666)
		if err != nil {
			return nameFile(s.logFile, err)
		}
		w = f
	}
	o := &slog.HandlerOptions{Level: s.level()}
	s.logger = slog.New(slog.NewTextHandler(w, o))
	if s.json {
		s.logger = slog.New(slog.NewJSONHandler(w, o))
	}
	return nil
}
