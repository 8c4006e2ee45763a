package main

import "strconv"

// nbdComparisons are those with libnbd's and QEMU's copiers, from a server that is started for each run and ends with it. The time to start it
// counts for all alike.
func nbdComparisons(s settings) []comparison {
	out := s.file("out.raw")
	served := func(label string, server []string, client ...string) program {
		return program{label: label, argv: append(append(with([]string{"nbdkit"}, server...), "--run"), command(client))}
	}
	uri := `"$uri"`
	from := []string{"file", s.image}
	sparse := []string{"sparse-random", "size=100G", "seed=1", "percent=1"}
	far := []string{"--filter=delay", "pattern", "64M", "rdelay=20ms", "wdelay=20ms"}
	return []comparison{
		{name: "nbd to null", note: "The server is nbdkit with the image.", inputs: []string{s.image}, of: []program{
			served("imgtool convert", from, s.imgtool, "convert", uri, "null:"),
			served("nbdcopy", from, "nbdcopy", uri, "null:"),
		}},
		{name: "nbd to raw", note: "The server is nbdkit with the image.", inputs: []string{s.image}, out: out, of: []program{
			served("imgtool convert", from, s.imgtool, "convert", uri, out),
			served("nbdcopy", from, "nbdcopy", uri, out),
			served("qemu-img convert", from, "qemu-img", "convert", "-m", "16", "-W", "-f", "raw", "-O", "raw", uri, out),
		}},
		{name: "nbd onto itself", note: "100 GiB of which 1 % is data, in pieces of 4 KiB and more, which the server makes and checks.", of: []program{
			served("imgtool convert", sparse, s.imgtool, "convert", "-f", "raw", "-O", "raw", uri, uri),
			served("nbdcopy", sparse, "nbdcopy", uri, uri),
		}},
		{name: "nbd far away", note: "64 MiB, each answer 20 ms late.", of: []program{
			served("imgtool convert", far, s.imgtool, "convert", "-f", "raw", uri, "null:"),
			served("nbdcopy", far, "nbdcopy", uri, "null:"),
		}},
		{name: "serve, first answer", note: "From the start of the server to the answer that nbdinfo got.", runs: 4 * s.runs, of: []program{
			{label: "imgtool serve", argv: []string{s.imgtool, "serve", "-f", "raw", "-r", s.image, "--run", command([]string{"nbdinfo", "--size", uri})}},
			{label: "nbdkit file", argv: []string{"nbdkit", "-r", "file", s.image, "--run", command([]string{"nbdinfo", "--size", uri})}},
		}},
	}
}

// command returns a line for the shell. A word that begins with a quote is one already.
func command(words []string) string {
	line := ""
	for _, w := range words {
		if w[0] != '"' {
			w = strconv.Quote(w)
		}
		line += w + " "
	}
	return line
}
