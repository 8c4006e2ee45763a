package main

// lookingCalls are the calls that change nothing.
func lookingCalls() (calls []call) {
	images := []string{
		"base.qcow2", "over.qcow2", "top.qcow2", "raw.img", "rawover.qcow2", "v2.qcow2", "ext.qcow2", "comp.qcow2", "zstd.qcow2", "meta.qcow2",
		"lazy.qcow2", "data.qcow2", "snap.qcow2", "bits.qcow2", "leak.qcow2", "bad.qcow2", "text", "orphan.qcow2", "absent", "folder",
	}
	add := func(line string, code int, free ...string) {
		calls = append(calls, call{line: line, code: code, free: free, looks: true})
	}
	for _, name := range images {
		free := []string{"data"} // which qemu-img says of what is allocated, and imgtool of what is not zero
		if name == "meta.qcow2" {
			free = append(free, "zero") // holes of the file, where the image says that there is data
		}
		add("info --json "+name, asTheirs)
		if name != "orphan.qcow2" {
			add("check --json "+name, asTheirs)
		}
		if name != "folder" {
			add("map --json "+name, asTheirs, free...)
		}
		if name != "orphan.qcow2" {
			add("snapshot -l "+name, asTheirs)
		}
		if name != "meta.qcow2" {
			add("measure --json -O qcow2 "+name, asTheirs)
		}
	}
	for _, line := range []string{
		"info --json --backing-chain raw.img", "info --json --backing-chain top.qcow2", "info --json --backing-chain rawover.qcow2",
		"info --json --backing-chain snap.qcow2", "info --json --backing-chain orphan.qcow2", "info --backing-chain absent",
		"map --json --start-offset 500k --max-length 3M over.qcow2",
		"map --json --start-offset 1000 --max-length 5000 rawover.qcow2",
		"check --json -f raw raw.img",
		"check -f qcow2 text",
		"info -f raw --json base.qcow2",
		"info -f qcow2 raw.img",
		"compare base.qcow2 base.qcow2",
		"compare base.qcow2 comp.qcow2",
		"compare base.qcow2 over.qcow2",
		"compare top.qcow2 over.qcow2",
		"compare long.qcow2 base.qcow2",
		"map --json long.qcow2",
		"compare -s base.qcow2 comp.qcow2",
		"compare -s base.qcow2 other.qcow2",
		"compare -s base.qcow2 base.qcow2",
		"compare base.qcow2 absent",
		"compare orphan.qcow2 base.qcow2",
		"compare -f qcow2 -F raw base.qcow2 raw.img",
		"compare -f qcow2 base.qcow2 text",
		"compare base.qcow2 bad.qcow2",
		"measure --json -O qcow2 --size 1G",
		"measure --json -O qcow2 --size 1T",
		"measure --json -O qcow2 -o cluster_size=2M --size 1G",
		"measure --json -O qcow2 -o cluster_size=512 --size 100M",
		"measure --json -O qcow2 -o preallocation=full --size 100M",
		"measure --json -O qcow2 -o refcount_bits=64,extended_l2=on,cluster_size=64k --size 3G",
		"measure --json -O qcow2 --size 1000",
		"measure --json -O raw --size 1000",
		"measure --json -O raw over.qcow2",
		"measure --json --size 3G",
	} {
		add(line, asTheirs)
	}
	for _, line := range []string{
		"info", "map", "compare base.qcow2", "measure -O raw", "measure -O nope --size 1", "measure --size 1M base.qcow2", "measure --size x",
		"snapshot -c a -d b snap.qcow2", "snapshot", "map -f nope raw.img", "info --nonsense raw.img",
	} {
		add(line, exitUsage)
	}
	add("check -q leak.qcow2", checkLeaks)
	add("check -q bad.qcow2", checkCorrupt)
	for _, line := range []string{"check --json orphan.qcow2", "snapshot -l orphan.qcow2"} { // they do not look at the backing file
		add(line, exitDone)
	}
	for _, line := range []string{"check", "check -r some base.qcow2", "check --nonsense base.qcow2", "check -f nope base.qcow2"} {
		add(line, asTheirs)
	}
	return calls
}

// changingCalls are the calls that change images in place.
func changingCalls() (calls []call) {
	add := func(line string, code int, made ...string) {
		calls = append(calls, call{line: line, code: code, made: made})
	}

	add("check -r leaks --json leak.qcow2", asTheirs, "leak.qcow2")
	// qemu-img makes all refcounts anew here, at the end of the file.
	calls = append(calls, call{line: "check -r all --json bad.qcow2", code: asTheirs, made: []string{"bad.qcow2"}, free: []string{"image-end-offset", "corruptions-fixed"}})
	add("check -r leaks --json bad.qcow2", checkCorrupt) // qemu-img fails
	add("check -r all --json base.qcow2", asTheirs, "base.qcow2")

	for _, name := range []string{"base.qcow2", "over.qcow2", "ext.qcow2", "comp.qcow2", "snap.qcow2", "v2.qcow2", "data.qcow2", "bits.qcow2"} {
		for _, size := range []string{"30M", "--shrink 512k", "--preallocation=metadata +2M"} {
			add("resize "+name+" "+size, asTheirs, name)
		}
	}
	for _, line := range []string{"+1M", "10M", "1M", "--preallocation=full +2M", "--preallocation=falloc +2M", "--shrink 11M", "10485761"} {
		add("resize base.qcow2 "+line, asTheirs, "base.qcow2")
	}
	add("resize top.qcow2 30M", asTheirs, "top.qcow2")
	add("resize lazy.qcow2 30M", asTheirs, "lazy.qcow2")
	for _, line := range []string{
		"5000000", "+1M", "--shrink 1M", "1M", "--shrink -- -1M", "--shrink -- -1G", "--shrink 0", "--preallocation=falloc +1M", "--preallocation=metadata +1M",
		"--preallocation=full --shrink 1M", "4M",
	} {
		add("resize -f raw raw.img "+line, asTheirs, "raw.img")
	}
	add("resize absent 1M", asTheirs)
	add("resize base.qcow2", exitUsage)
	add("resize base.qcow2 x", exitUsage)
	add("resize --preallocation=some base.qcow2 20M", exitUsage)

	add("rebase -b other.qcow2 -F qcow2 over.qcow2", asTheirs, "over.qcow2")
	add("rebase -b other.qcow2 -F qcow2 top.qcow2", asTheirs, "top.qcow2")
	add("rebase -b base.qcow2 -F qcow2 top.qcow2", asTheirs, "top.qcow2")
	add("rebase -b base.qcow2 -F qcow2 long.qcow2", asTheirs, "long.qcow2")
	add("rebase -b '' long.qcow2", asTheirs, "long.qcow2")
	add("resize short.qcow2 8M", asTheirs, "short.qcow2")
	add("rebase -b raw.img -F raw over.qcow2", asTheirs, "over.qcow2")
	add("rebase -b base.qcow2 -F qcow2 rawover.qcow2", asTheirs, "rawover.qcow2")
	add("rebase -b '' over.qcow2", asTheirs, "over.qcow2")
	add("rebase -b '' top.qcow2", asTheirs, "top.qcow2")
	add("rebase -b other.qcow2 -F qcow2 ext.qcow2", asTheirs, "ext.qcow2")
	add("rebase -b other.qcow2 -F qcow2 base.qcow2", asTheirs, "base.qcow2")
	add("rebase -u -b other.qcow2 -F qcow2 over.qcow2", asTheirs, "over.qcow2")
	add("rebase -u -b absent -F qcow2 over.qcow2", asTheirs)
	add("rebase -u -b '' over.qcow2", asTheirs, "over.qcow2")
	add("rebase -u -b base.qcow2 -F qcow2 orphan.qcow2", asTheirs, "orphan.qcow2")
	add("rebase -b absent -F qcow2 over.qcow2", asTheirs, "over.qcow2")
	add("rebase -b base.qcow2 -F qcow2 raw.img", asTheirs)
	add("rebase -b base.qcow2 -F qcow2 absent", asTheirs)
	add("rebase -u -b base.qcow2 over.qcow2", exitUsage, "over.qcow2")
	add("rebase over.qcow2", exitUsage)

	add("commit over.qcow2", asTheirs, "over.qcow2", "base.qcow2")
	add("commit -d over.qcow2", asTheirs, "over.qcow2", "base.qcow2")
	add("commit top.qcow2", asTheirs, "top.qcow2", "over.qcow2", "base.qcow2")
	add("commit -b base.qcow2 top.qcow2", asTheirs, "top.qcow2", "base.qcow2")
	add("commit -b over.qcow2 top.qcow2", asTheirs, "top.qcow2", "over.qcow2")
	add("commit long.qcow2", asTheirs, "long.qcow2", "short.qcow2", "base.qcow2")
	add("commit -b base.qcow2 long.qcow2", asTheirs, "long.qcow2", "base.qcow2")
	add("commit short.qcow2", asTheirs, "short.qcow2", "base.qcow2")
	add("commit rawover.qcow2", asTheirs, "rawover.qcow2")
	add("commit base.qcow2", asTheirs, "base.qcow2")
	add("commit -b absent over.qcow2", asTheirs, "over.qcow2")
	add("commit orphan.qcow2", asTheirs)
	add("commit raw.img", asTheirs)
	add("commit absent", asTheirs)
	add("commit", exitUsage)

	for _, line := range []string{"-c new", "-a one", "-a two", "-a 1", "-d one", "-d two", "-a nope", "-d nope", "-d 1", "-d 2"} {
		add("snapshot "+line+" snap.qcow2", asTheirs, "snap.qcow2")
	}
	add("snapshot -c new over.qcow2", asTheirs, "over.qcow2")
	add("snapshot -c new v2.qcow2", asTheirs, "v2.qcow2")
	add("snapshot -c new comp.qcow2", asTheirs, "comp.qcow2")
	add("snapshot -c new raw.img", asTheirs)
	add("snapshot -c new data.qcow2", asTheirs)

	for _, line := range []string{
		"--add bits.qcow2 b2", "--add -g 128k bits.qcow2 b2", "--add --disable bits.qcow2 b2", "--add bits.qcow2 b0", "--add -g 1000 bits.qcow2 b2",
		"--remove bits.qcow2 b0", "--remove bits.qcow2 nope", "--clear bits.qcow2 b0", "--disable bits.qcow2 b0", "--enable bits.qcow2 b1",
		"--merge b0 bits.qcow2 b1", "--merge nope bits.qcow2 b1", "--clear --merge b1 bits.qcow2 b0", "--add --merge b0 bits.qcow2 b2",
		"--remove --add bits.qcow2 b0", "--merge b0 -b bits.qcow2 -F qcow2 base.qcow2 b1",
	} {
		add("bitmap "+line, asTheirs, "bits.qcow2")
	}
	add("bitmap --add base.qcow2 b0", asTheirs, "base.qcow2")
	add("bitmap --add v2.qcow2 b0", asTheirs, "v2.qcow2")
	add("bitmap --add raw.img b0", asTheirs)
	add("bitmap --add absent b0", asTheirs)
	add("bitmap bits.qcow2 b0", exitUsage)
	add("bitmap --add bits.qcow2", exitUsage)
	add("bitmap --remove -g 64k bits.qcow2 b0", exitUsage)

	for _, line := range []string{
		"compat=0.10 base.qcow2", "compat=1.1 v2.qcow2", "compat=1.1,lazy_refcounts=on v2.qcow2", "lazy_refcounts=on base.qcow2", "lazy_refcounts=off lazy.qcow2",
		"refcount_bits=64 tiny.qcow2", "refcount_bits=1 tiny.qcow2", "refcount_bits=1 tinysnap.qcow2", "refcount_bits=8 tinysnap.qcow2", "refcount_bits=8 v2.qcow2",
		"compat=0.10 lazy.qcow2", "compat=0.10 zstd.qcow2", "compat=0.10 ext.qcow2", "cluster_size=4k base.qcow2", "nonsense=1 base.qcow2", "compat=2 base.qcow2",
		"compat=0.10 over.qcow2", "compat=0.10 data.qcow2",
	} {
		words := fields(line)
		add("amend -o "+line, asTheirs, words[len(words)-1])
	}
	add("amend -o compat=0.10 bits.qcow2", exitFailed, "bits.qcow2") // qemu-img loses the bitmaps and leaks their clusters
	add("amend -f raw -o x=y raw.img", asTheirs)
	add("amend base.qcow2", exitUsage)
	return calls
}

// makingCalls are the calls that make new images.
func makingCalls() (calls []call) {
	add := func(line string, code int, made ...string) {
		calls = append(calls, call{line: line, code: code, made: made})
	}

	for _, options := range []string{
		"", "-o cluster_size=2M", "-o cluster_size=512", "-o compat=0.10", "-o refcount_bits=64", "-o refcount_bits=1", "-o lazy_refcounts=on", "-o extended_l2=on,cluster_size=16k",
		"-o compression_type=zstd", "-o preallocation=metadata", "-o preallocation=falloc", "-o preallocation=full", "-o data_file=new.bin", "-o data_file=new.bin,data_file_raw=on",
		"-o cluster_size=12345", "-o nonsense=1", "-o compat=0.10,lazy_refcounts=on", "-o preallocation=some",
	} {
		code := asTheirs
		switch options {
		case "-o nonsense=1", "-o preallocation=some":
			code = exitUsage
		}
		add("create -f qcow2 "+options+" new.qcow2 10M", code, "new.qcow2")
	}
	for _, line := range []string{
		"create -f qcow2 -b base.qcow2 -F qcow2 new.qcow2", "create -f qcow2 -b base.qcow2 -F qcow2 new.qcow2 20M", "create -f qcow2 -b raw.img -F raw new.qcow2",
		"create -f qcow2 -b over.qcow2 -F qcow2 new.qcow2", "create -f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2 new.qcow2",
		"create -f qcow2 -u -b base.qcow2 -F qcow2 new.qcow2 10M", "create -f qcow2 new.qcow2 1000", "create -f qcow2 new.qcow2 0", "create -f qcow2 new.qcow2 1T",
		"create -f qcow2 base.qcow2 1M", "create -q -f qcow2 -b base.qcow2 -F qcow2 -o extended_l2=on new.qcow2",
	} {
		words := fields(line)
		name := words[len(words)-1]
		if name[0] >= '0' && name[0] <= '9' {
			name = words[len(words)-2]
		}
		add(line, asTheirs, name)
	}
	for _, line := range []string{"1M", "1000", "0", "-o preallocation=falloc 1M", "-o preallocation=full 1M", "-o preallocation=off 3M"} {
		add("create -f raw new.img "+line, asTheirs)
	}
	add("create -f raw -o preallocation=metadata new.img 1M", exitUsage)
	add("create -f qcow2 -b absent -F qcow2 new.qcow2", asTheirs)
	add("create -f qcow2 -b absent -F qcow2 new.qcow2 10M", asTheirs)
	add("create -f raw absent/new.img 1M", asTheirs)
	add("create -f raw folder 1M", asTheirs)
	for _, line := range []string{
		"create", "create -f nope new.img 1M", "create -f qcow2 new.qcow2", "create -f qcow2 new.qcow2 10X", "create -f qcow2 -b base.qcow2 new.qcow2",
		"create -f qcow2 -b base.qcow2 -F qcow2 base.qcow2", "create -f qcow2 -b over.qcow2 -F qcow2 over.qcow2", "create -f raw -b base.qcow2 -F qcow2 new.img",
		"create -f qcow2 -u -b absent -F qcow2 new.qcow2", "create -f qcow2 -b base.qcow2 -F nope new.qcow2",
	} {
		add(line, exitUsage)
	}

	for _, line := range []string{
		"if=over.qcow2 of=new.img bs=1M count=2", "if=over.qcow2 of=new.img bs=1M skip=9", "if=over.qcow2 of=new.img bs=1M skip=20", "if=over.qcow2 of=new.img bs=3000k",
		"if=over.qcow2 of=new.img bs=64k skip=3", "if=over.qcow2 of=new.img count=0", "if=raw.img of=new.img bs=1k count=1k",
	} {
		add("dd -O raw "+line, asTheirs, "new.img")
	}
	add("dd -f qcow2 -O qcow2 if=base.qcow2 of=new.qcow2 bs=2M", asTheirs, "new.qcow2")
	add("dd -O qcow2 if=over.qcow2 of=new.qcow2 bs=1M count=3", asTheirs, "new.qcow2")
	add("dd if=absent of=new.img", asTheirs)
	for _, line := range []string{"dd if=base.qcow2", "dd if=base.qcow2 of=new.img bs=0", "dd if=base.qcow2 of=new.img seek=1", "dd -O nope if=base.qcow2 of=new.img"} {
		add(line, exitUsage)
	}
	return calls
}
