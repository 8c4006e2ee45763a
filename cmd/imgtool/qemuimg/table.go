package qemuimg

// The keys by which options are asked for. One option has the same key in every command.
const (
	help           = "help"
	version        = "version"
	trace          = "trace"
	object         = "object"
	imageOpts      = "image-opts"
	targetOpts     = "target-image-opts"
	format         = "format"
	outputFormat   = "output-format"
	backing        = "backing"
	backingFormat  = "backing-format"
	secondFormat   = "second-format"
	options        = "options"
	output         = "output"
	cache          = "cache"
	sourceCache    = "source-cache"
	quiet          = "quiet"
	progress       = "progress"
	share          = "share"
	unsafeMode     = "unsafe"
	snapshot       = "snapshot"
	rate           = "rate"
	force          = "force"
	backingChain   = "backing-chain"
	repair         = "repair"
	strict         = "strict"
	compress       = "compress"
	noCreate       = "no-create"
	offload        = "offload"
	unordered      = "unordered"
	coroutines     = "coroutines"
	sparse         = "sparse"
	targetIsZero   = "target-is-zero"
	salvage        = "salvage"
	bitmaps        = "bitmaps"
	skipBroken     = "skip-broken-bitmaps"
	startOffset    = "start-offset"
	maxLength      = "max-length"
	size           = "size"
	preallocation  = "preallocation"
	shrink         = "shrink"
	deleteImage    = "delete"
	listSnapshots  = "list"
	applySnapshot  = "apply"
	createSnapshot = "create"
	deleteSnapshot = "delete-snapshot"
	add            = "add"
	remove         = "remove"
	clearBits      = "clear"
	enable         = "enable"
	disable        = "disable"
	merge          = "merge"
	granularity    = "granularity"
	sourceFile     = "source-file"
	sourceFormat   = "source-format"
	count          = "count"
	depth          = "depth"
	flushInterval  = "flush-interval"
	aio            = "aio"
	native         = "native"
	noDrain        = "no-drain"
	offset         = "offset"
	bytePattern    = "pattern"
	bufferSize     = "buffer-size"
	stepSize       = "step-size"
	write          = "write"
)

// command is a command of qemu-img.
type command struct {
	name    string
	usage   string // its operands
	options []option
	build   func(*parser) error
}

// globals are the options before the command.
func globals() []option {
	return []option{{help, 'h', "help", ""}, {version, 'V', "version", ""}, {trace, 'T', "trace", "trace"}}
}

// commands lists the commands with the options that each of them has in qemu-img 7.2.
func commands() []command {
	var (
		helpFlag   = option{help, 'h', "help", ""}
		objects    = option{object, 0, "object", "objectdef"}
		imgOpts    = option{imageOpts, 0, "image-opts", ""}
		fmtShort   = option{format, 'f', "", "fmt"}
		fmtLong    = option{format, 'f', "format", "fmt"}
		outFmt     = option{outputFormat, 'O', "", "output_fmt"}
		outputs    = option{output, 0, "output", "ofmt"}
		quietFlag  = option{quiet, 'q', "", ""}
		progFlag   = option{progress, 'p', "", ""}
		shareFlag  = option{share, 'U', "force-share", ""}
		cacheOpt   = option{cache, 't', "", "cache"}
		srcCache   = option{sourceCache, 'T', "", "src_cache"}
		formatOpts = option{options, 'o', "", "options"}
		rateOpt    = option{rate, 'r', "", "rate_limit"}
		snapshotL  = option{snapshot, 'l', "", "snapshot_param"}
	)
	return []command{
		{"amend", "filename", []option{helpFlag, objects, imgOpts, progFlag, quietFlag, fmtShort, cacheOpt, {force, 0, "force", ""}, formatOpts}, buildAmend},
		{"bench", "filename", []option{
			helpFlag, {count, 'c', "", "count"}, {depth, 'd', "", "depth"}, fmtShort, {flushInterval, 0, "flush-interval", "flush_interval"}, {aio, 'i', "", "aio"},
			{native, 'n', "", ""}, {noDrain, 0, "no-drain", ""}, {offset, 'o', "", "offset"}, {bytePattern, 0, "pattern", "pattern"}, quietFlag,
			{bufferSize, 's', "", "buffer_size"}, {stepSize, 'S', "", "step_size"}, cacheOpt, {write, 'w', "", ""}, imgOpts, shareFlag,
		}, buildBench},
		{"bitmap", "filename bitmap", []option{
			helpFlag, {merge, 0, "merge", "source"}, {add, 0, "add", ""}, {remove, 0, "remove", ""}, {clearBits, 0, "clear", ""}, {enable, 0, "enable", ""},
			{disable, 0, "disable", ""}, {sourceFile, 'b', "source-file", "source_file"}, {sourceFormat, 'F', "source-format", "source_fmt"},
			{granularity, 'g', "granularity", "granularity"}, objects, imgOpts, fmtShort,
		}, buildBitmap},
		{"check", "filename", []option{helpFlag, objects, imgOpts, quietFlag, fmtLong, outputs, {repair, 'r', "repair", "leaks | all"}, srcCache, shareFlag}, buildCheck},
		{"commit", "filename", []option{
			helpFlag, objects, imgOpts, quietFlag, fmtShort, cacheOpt, {backing, 'b', "", "base"}, rateOpt, {deleteImage, 'd', "", ""}, progFlag,
		}, buildCommit},
		{"compare", "filename1 filename2", []option{
			helpFlag, objects, imgOpts, fmtShort, {secondFormat, 'F', "", "fmt"}, srcCache, progFlag, quietFlag, {strict, 's', "", ""}, shareFlag,
		}, buildCompare},
		{"convert", "filename [filename2 [...]] output_filename", []option{
			helpFlag, objects, imgOpts, {targetOpts, 0, "target-image-opts", ""}, {targetIsZero, 0, "target-is-zero", ""}, {bitmaps, 0, "bitmaps", ""},
			{skipBroken, 0, "skip-broken-bitmaps", ""}, shareFlag, {offload, 'C', "", ""}, {compress, 'c', "", ""}, progFlag, quietFlag, {noCreate, 'n', "", ""},
			fmtShort, cacheOpt, srcCache, outFmt, {backing, 'B', "", "backing_file"}, {backingFormat, 'F', "", "backing_fmt"}, formatOpts, snapshotL,
			{sparse, 'S', "", "sparse_size"}, rateOpt, {coroutines, 'm', "", "num_coroutines"}, {unordered, 'W', "", ""}, {salvage, 0, "salvage", ""},
		}, buildConvert},
		{"create", "filename [size]", []option{
			helpFlag, objects, quietFlag, fmtShort, {backing, 'b', "", "backing_file"}, {backingFormat, 'F', "", "backing_fmt"}, {unsafeMode, 'u', "", ""}, formatOpts,
		}, buildCreate},
		{"dd", "[bs=block_size] [count=blocks] [skip=blocks] if=input of=output", []option{helpFlag, objects, imgOpts, shareFlag, fmtShort, outFmt}, buildDD},
		{"info", "filename", []option{helpFlag, objects, imgOpts, fmtLong, outputs, {backingChain, 0, "backing-chain", ""}, shareFlag}, buildInfo},
		{"map", "filename", []option{
			helpFlag, objects, imgOpts, fmtLong, {startOffset, 's', "start-offset", "offset"}, {maxLength, 'l', "max-length", "len"}, outputs, shareFlag,
		}, buildMap},
		{"measure", "[filename]", []option{helpFlag, outputs, outFmt, formatOpts, {size, 0, "size", "N"}, objects, imgOpts, fmtShort, snapshotL, shareFlag}, buildMeasure},
		{"rebase", "filename", []option{
			helpFlag, objects, imgOpts, shareFlag, quietFlag, fmtShort, cacheOpt, srcCache, progFlag, {unsafeMode, 'u', "", ""},
			{backing, 'b', "", "backing_file"}, {backingFormat, 'F', "", "backing_fmt"},
		}, buildRebase},
		{"resize", "filename [+ | -]size", []option{
			helpFlag, objects, imgOpts, fmtShort, {preallocation, 0, "preallocation", "prealloc"}, quietFlag, {shrink, 0, "shrink", ""},
		}, buildResize},
		{"snapshot", "filename", []option{
			helpFlag, objects, imgOpts, shareFlag, quietFlag, {listSnapshots, 'l', "", ""}, {applySnapshot, 'a', "", "snapshot"},
			{createSnapshot, 'c', "", "snapshot"}, {deleteSnapshot, 'd', "", "snapshot"},
		}, buildSnapshot},
	}
}
