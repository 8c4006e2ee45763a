package main

import (
	"strconv"

	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

// serverInfo is what a server tells, in JSON. The names are those of nbdinfo.
type serverInfo struct {
	Protocol   string       `json:"protocol"`
	TLS        bool         `json:"TLS"`
	Structured bool         `json:"structured"`
	Extended   bool         `json:"extended"`
	Exports    []exportInfo `json:"exports"`
}

// exportInfo is what a server tells of an export. Sizes are in bytes.
type exportInfo struct {
	Name        shown   `json:"export-name"`
	Description shown   `json:"description,omitempty"`
	Content     shown   `json:"content,omitempty"`
	URI         shown   `json:"uri,omitempty"`
	Contexts    []shown `json:"contexts,omitzero"` // nil where the server does not tell

	IsRotational          bool `json:"is_rotational"`
	IsReadOnly            bool `json:"is_read_only"`
	CanBlockStatusPayload bool `json:"can_block_status_payload"`
	CanCache              bool `json:"can_cache"`
	CanDF                 bool `json:"can_df"`
	CanFastZero           bool `json:"can_fast_zero"`
	CanFlush              bool `json:"can_flush"`
	CanFUA                bool `json:"can_fua"`
	CanMultiConn          bool `json:"can_multi_conn"`
	CanTrim               bool `json:"can_trim"`
	CanZero               bool `json:"can_zero"`

	MinBlock       int64  `json:"block_size_minimum,omitempty"` // this one and the next two: where the server tells
	PreferredBlock int64  `json:"block_size_preferred,omitempty"`
	MaxBlock       int64  `json:"block_size_maximum,omitempty"`
	Size           int64  `json:"export-size"`
	SizeText       string `json:"export-size-str"`
}

// newServerInfo returns what has been agreed on with a server so far.
func newServerInfo(c *client.Conn) serverInfo {
	return serverInfo{Protocol: c.Protocol(), TLS: c.Secure(), Structured: c.Structured(), Extended: c.Extended(), Exports: []exportInfo{}}
}

// newExportInfo returns what e says. name is the one that was asked for.
func newExportInfo(name string, e client.ExportInfo) exportInfo {
	has := func(f wire.TransmissionFlags) bool { return e.Flags&f != 0 }
	if e.Name != "" {
		name = e.Name
	}
	info := exportInfo{
		Name: shown(name), Description: shown(e.Description), Size: e.Size, SizeText: shortest(e.Size),
		IsRotational: has(wire.Rotational), IsReadOnly: has(wire.ReadOnly), CanBlockStatusPayload: has(wire.BlockStatusPayload),
		CanCache: has(wire.SendCache), CanDF: has(wire.SendDF), CanFastZero: has(wire.SendFastZero), CanFlush: has(wire.SendFlush),
		CanFUA: has(wire.SendFUA), CanMultiConn: has(wire.CanMultiConn), CanTrim: has(wire.SendTrim), CanZero: has(wire.SendWriteZeroes),
	}
	if e.BlockSizes {
		info.MinBlock, info.PreferredBlock, info.MaxBlock = e.MinBlock, e.PreferredBlock, e.MaxPayload
	}
	return info
}

// shortest returns an exact size with the largest unit that divides it: 1M, 1003.
func shortest(n int64) string {
	unit := 0
	for n != 0 && n%1024 == 0 && unit < len("KMGTPE") {
		n, unit = n/1024, unit+1
	}
	return strconv.FormatInt(n, 10) + "KMGTPE"[max(unit-1, 0):unit]
}

// printServer prints the line that stands above the exports.
func printServer(p painter, s serverInfo) {
	tls, packets := "without", "simple"
	if s.TLS {
		tls = "with"
	}
	switch {
	case s.Extended:
		packets = "extended"
	case s.Structured:
		packets = "structured"
	}
	p.printf(colorDim, "protocol: %s %s TLS, using %s packets", s.Protocol, tls, packets)
}

// printExport prints an export. extended says that the connection uses extended headers.
func printExport(p painter, e exportInfo, extended bool) {
	p.printf(colorBold, "export=%s:", e.Name.quoted())
	if e.Description != "" {
		p.printf(colorBold, "\tdescription: %s", e.Description)
	}
	size := strconv.FormatInt(e.Size, 10)
	if e.SizeText != size {
		size += " (" + e.SizeText + ")"
	}
	p.printf(colorBold, "\texport-size: %s", size)
	if e.Content != "" {
		p.printf(colorBold, "\tcontent: %s", e.Content)
	}
	if e.URI != "" {
		p.printf(colorBold, "\turi: %s", e.URI)
	}
	if e.Contexts != nil {
		p.printf(colorDim, "\tcontexts:")
		for _, c := range e.Contexts {
			p.printf(colorDim, "\t\t%s", c)
		}
	}
	p.printf(colorDim, "\tis_rotational: %t", e.IsRotational)
	p.printf(colorNone, "\tis_read_only: %t", e.IsReadOnly)
	can := func(name string, yes bool) {
		color := colorRed
		if yes {
			color = colorGreen
		}
		p.printf(color, "\tcan_%s: %t", name, yes)
	}
	if extended {
		can("block_status_payload", e.CanBlockStatusPayload)
	}
	can("cache", e.CanCache)
	can("df", e.CanDF)
	can("fast_zero", e.CanFastZero)
	can("flush", e.CanFlush)
	can("fua", e.CanFUA)
	can("multi_conn", e.CanMultiConn)
	can("trim", e.CanTrim)
	can("zero", e.CanZero)
	if e.MinBlock > 0 {
		p.printf(colorNone, "\tblock_size_minimum: %d", e.MinBlock)
		p.printf(colorNone, "\tblock_size_preferred: %d", e.PreferredBlock)
		p.printf(colorNone, "\tblock_size_maximum: %d", e.MaxBlock)
	}
}
