package main

// convertCalls are calls of convert.
func convertCalls() (calls []call) {
	for _, line := range []string{
		// of every sort of source
		"convert -O raw base.qcow2 new.raw", "convert -O raw over.qcow2 new.raw", "convert -O raw top.qcow2 new.raw", "convert -O raw rawover.qcow2 new.raw",
		"convert -O raw v2.qcow2 new.raw", "convert -O raw ext.qcow2 new.raw", "convert -O raw comp.qcow2 new.raw", "convert -O raw zstd.qcow2 new.raw",
		"convert -O raw meta.qcow2 new.raw", "convert -O raw data.qcow2 new.raw", "convert -O raw leak.qcow2 new.raw",
		"convert -O raw -l one snap.qcow2 new.raw", "convert -O raw -l 3 snap.qcow2 new.raw", "convert -O raw -l two snap.qcow2 new.raw",
		"convert -O raw -l snapshot.name=one snap.qcow2 new.raw", "convert -O raw -l snapshot.id=2 snap.qcow2 new.raw",
		"convert -O raw -l snapshot.id=3,snapshot.name=two snap.qcow2 new.raw",
		"convert -O raw base.qcow2 over.qcow2 raw.img new.raw",

		// to every sort of target
		"convert -O qcow2 raw.img new.qcow2", "convert -f raw -O qcow2 -S 64k raw.img new.qcow2", "convert -O qcow2 -S 0 raw.img new.qcow2",
		"convert -O qcow2 -c raw.img new.qcow2", "convert -O qcow2 -c -o compression_type=zstd top.qcow2 new.qcow2",
		"convert -O qcow2 -o cluster_size=4k raw.img new.qcow2", "convert -O qcow2 -o cluster_size=2M over.qcow2 new.qcow2",
		"convert -O qcow2 -o compat=0.10 raw.img new.qcow2", "convert -O qcow2 -o extended_l2=on top.qcow2 new.qcow2",
		"convert -O qcow2 -o lazy_refcounts=on,refcount_bits=1 raw.img new.qcow2", "convert -O qcow2 -o data_file=new.bin raw.img new.qcow2",
		"convert -O qcow2 -o preallocation=metadata raw.img new.qcow2", "convert -O qcow2 -o preallocation=falloc raw.img new.qcow2",
		"convert -O qcow2 -o preallocation=full raw.img new.qcow2", "convert -O qcow2 raw.img base.qcow2 new.qcow2",
		"convert -O qcow2 -m 4 -W -t none -T none -r 1G raw.img new.qcow2", "convert -O qcow2 --salvage top.qcow2 new.qcow2",

		// over a backing file
		"convert -O qcow2 -B base.qcow2 -F qcow2 over.qcow2 new.qcow2", "convert -O qcow2 -c -B base.qcow2 -F qcow2 over.qcow2 new.qcow2",
		"convert -O qcow2 -S 0 -B base.qcow2 -F qcow2 over.qcow2 new.qcow2", "convert -O qcow2 -o backing_file=raw.img,backing_fmt=raw rawover.qcow2 new.qcow2",
		"convert -O qcow2 -o cluster_size=4k -B base.qcow2 -F qcow2 over.qcow2 new.qcow2", "convert -O qcow2 -B raw.img -F raw base.qcow2 new.qcow2",
		"convert -O qcow2 -B over.qcow2 -F qcow2 top.qcow2 new.qcow2", "convert -O qcow2 -B base.qcow2 -F qcow2 raw.img new.qcow2",

		// into what exists
		"convert -n -O qcow2 raw.img base.qcow2", "convert -n -O qcow2 base.qcow2 other.qcow2", "convert -n -O qcow2 raw.img over.qcow2",
		"convert -n -O qcow2 -B base.qcow2 rawover.qcow2 over.qcow2", "convert -n -O raw v2.qcow2 raw.img", "convert -n -O qcow2 raw.img v2.qcow2",
		"convert -n -O qcow2 -S 0 raw.img over.qcow2", "convert -n -O qcow2 raw.img ext.qcow2", "convert -n -O qcow2 raw.img comp.qcow2",
		"convert -n -O qcow2 raw.img snap.qcow2", "convert -n -O raw base.qcow2 raw.img", "convert -n -O qcow2 base.qcow2 absent",

		// with bitmaps
		"convert -O qcow2 --bitmaps bits.qcow2 new.qcow2", "convert -n -O qcow2 --bitmaps bits.qcow2 snap.qcow2",

		// what cannot be
		"convert -O raw absent new.raw", "convert -O raw base.qcow2 folder/absent/new.raw", "convert -O raw orphan.qcow2 new.raw",
		"convert -O raw -l none snap.qcow2 new.raw", "convert -O raw -l snapshot.id=1,snapshot.name=two snap.qcow2 new.raw",
		"convert -O qcow2 -B absent -F qcow2 over.qcow2 new.qcow2",
	} {
		calls = append(calls, call{line: line, code: asTheirs, made: convertMakes(line)})
	}
	for _, line := range []string{
		"convert", "convert raw.img", "convert -O nope raw.img new.raw", "convert -O raw -c raw.img new.raw", "convert -O qcow2 --target-is-zero raw.img new.qcow2",
		"convert -n -O qcow2 -o cluster_size=4k raw.img base.qcow2", "convert -O qcow2 -B base.qcow2 over.qcow2 new.qcow2",
		"convert -O raw -B base.qcow2 -F qcow2 over.qcow2 new.raw", "convert -O qcow2 -B base.qcow2 -F qcow2 raw.img raw.img new.qcow2",
		"convert -O raw -o preallocation=metadata raw.img new.raw", "convert -O qcow2 -o nope=1 raw.img new.qcow2", "convert -t fast raw.img new.raw",
		"convert -O raw -S x raw.img new.raw", "convert -O qcow2 --skip-broken-bitmaps bits.qcow2 new.qcow2",
	} {
		calls = append(calls, call{line: line, code: exitUsage, made: convertMakes(line)})
	}
	return calls
}

// convertMakes returns the target of a line, if it has one.
func convertMakes(line string) []string {
	words := fields(line)
	if len(words) < 3 {
		return nil
	}
	return words[len(words)-1:]
}
