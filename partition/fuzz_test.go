package partition

import (
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/imgtool/imgtool/block"
)

// checkTable fails where a table breaks a promise of its documentation.
func checkTable(t *testing.T, d block.Device, table *Table) {
	t.Helper()
	if table.Scheme == GPT == (table.DiskGUID == "") || table.Scheme == MBR == (table.DiskSignature == "") || len(table.Problems) > maxProblems {
		t.Fatalf("%+v", table)
	}
	end := int64(-1)
	for _, r := range table.Metadata {
		if r.Len <= 0 || r.Off <= end || block.CheckRange(r.Off, r.Len, d.Size()) != nil {
			t.Fatalf("metadata %v", table.Metadata)
		}
		end = r.End()
	}
	last := 0
	for _, p := range table.Partitions {
		if _, ok := block.Add(p.Start, p.Size); !ok || p.Number <= last || p.Size <= 0 {
			t.Fatalf("partition %+v", p)
		}
		last = p.Number
		if _, err := table.Window(d, p); (err == nil) != (p.End() <= d.Size()) {
			t.Fatalf("partition %+v of a disk of %d bytes: window %v", p, d.Size(), err)
		}
	}
	if err := table.ProbeFileSystems(t.Context(), d); err != nil {
		t.Fatal(err)
	}
}

// FuzzMBR lays boot records, 512 bytes each, over a disk: the first at sector 0, the next ones every 8 sectors.
func FuzzMBR(f *testing.F) {
	f.Add(append(bootRecord(1, record{0x83, 64, 8}, record{0x05, 8, 48}),
		append(bootRecord(0, record{0x83, 1, 4}, record{0x05, 8, 8}), bootRecord(0, record{0x83, 1, 4}, record{0x05, 0, 8})...)...))
	f.Add(fatBoot())
	f.Add(encodeProtective(1000))
	f.Fuzz(func(t *testing.T, data []byte) {
		d := newMemory(1 << 20)
		for i := int64(0); len(data) > 0 && i < 64; i++ {
			n := min(mbrSize, len(data))
			d.put(data[:n], i*8*512)
			data = data[n:]
		}
		if table, err := Read(t.Context(), d); err == nil {
			checkTable(t, d, table)
		}
	})
}

// FuzzGPT lays headers and entries over a disk and makes the CRCs right, so that what lies behind them is reached.
func FuzzGPT(f *testing.F) {
	for _, sector := range []int64{512, 4096} {
		d := sampleDisk(f, sector)
		f.Add(d.bytes(sector, gptHeaderSize), d.bytes(sampleSize-sector, gptHeaderSize), d.bytes(2*sector, 10*128), sector == 4096, true)
	}
	f.Fuzz(func(t *testing.T, primary, backup, array []byte, large, protective bool) {
		const size = sampleSize
		sector := int64(512)
		if large {
			sector = 4096
		}
		d := newMemory(size)
		if protective {
			d.put(encodeProtective(size/sector), 0)
		}
		if len(array) > 2*gptArray {
			return
		}
		d.put(array, 2*sector)
		d.put(array, size-sector-gptArray)
		for off, header := range map[int64][]byte{sector: primary, size - sector: backup} {
			if int64(len(header)) > sector {
				return
			}
			d.put(header, off)
			if len(header) < gptHeaderSize {
				continue
			}
			var h gptHeader
			_, _ = binary.Decode(header, binary.LittleEndian, &h)
			n, at := int64(h.NumberOfPartitionEntries)*int64(h.SizeOfPartitionEntry), int64(h.PartitionEntryLBA%size)*sector
			if n <= 1<<16 && block.CheckRange(at, n, size) == nil {
				h.PartitionEntryArrayCRC32 = crc32.ChecksumIEEE(d.bytes(at, n))
				patchHeader(d, off, func(p *gptHeader) { p.PartitionEntryArrayCRC32 = h.PartitionEntryArrayCRC32 })
			}
		}
		if table, err := Read(t.Context(), d); err == nil {
			checkTable(t, d, table)
		}
	})
}

// FuzzProbe probes bytes as the start of a device, with a second piece of it elsewhere for directories and file records.
func FuzzProbe(f *testing.F) {
	f.Add(fatBoot(), rootDir("\x08BOOT       "), uint32(129*512))
	f.Add(ntfsBoot(), volumeRecord("D\x00", 2), uint32(4*4096+3*1024))
	f.Add(exfatBoot(), []byte("\x83\x02a\x00b\x00"), uint32((64+3)*512))
	f.Add([]byte("XFSB"), []byte("_BHRfS_M"), uint32(65600))
	f.Add([]byte("LUKS\xBA\xBE\x00\x02"), []byte("\x53\xEF"), uint32(1080))
	f.Add([]byte(""), []byte("LABELONE"), uint32(512))
	f.Fuzz(func(t *testing.T, head, other []byte, off uint32) {
		if len(head) > probeHead || len(other) > maxDir {
			return
		}
		d := newMemory(1 << 20)
		d.put(other, int64(off)%(1<<20-maxDir))
		d.put(head, 0)
		fs, err := Probe(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		if fs.Type == "" && fs != (FileSystem{}) {
			t.Fatalf("%+v", fs)
		}
		if d.read > probeHead+maxDir+4*maxChain {
			t.Fatalf("%d bytes were read", d.read)
		}
	})
}
