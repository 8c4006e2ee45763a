package conformance

import (
	"slices"
	"strings"

	"github.com/imgtool/imgtool/nbd/conformance/probe"
	"github.com/imgtool/imgtool/nbd/wire"
)

const sectionMeta = "Metadata querying"

var metaChecks = []*Check{
	{"meta/list-before-structured", Must, sectionOptions, "LIST_META_CONTEXT before structured replies is answered or ERR_INVALID, and negotiation goes on", needStructured | needExport, metaListEarly},
	{"meta/set-before-structured", Should, sectionOptions, "SET_META_CONTEXT before structured replies is ERR_INVALID", needStructured | needContext, metaSetEarly},
	{"meta/list-all", Must, sectionOptions, "LIST_META_CONTEXT without queries lists everything that SET_META_CONTEXT can select", needStructured | needContext, metaListAll},
	{"meta/list-wildcard", Must, sectionMeta, "the query base: lists base:allocation", needStructured | needContext, metaListWildcard},
	{"meta/list-exact", Must, sectionOptions, "a query for one context lists that context once", needStructured | needContext, metaListExact},
	{"meta/list-duplicates", Should, sectionOptions, "the same query twice lists a context once", needStructured | needContext, metaListDuplicates},
	{"meta/list-ids", Should, sectionOptions, "the ids in a list are zero", needStructured | needContext, metaListIDs},
	{"meta/unknown-namespace", Must, sectionOptions, "queries of an unknown namespace are ignored", needStructured | needExport, metaUnknownNamespace},
	{"meta/unknown-leaf", Must, sectionMeta, "unknown names after base: are ignored", needStructured | needContext, metaUnknownLeaf},
	{"meta/no-namespace", Quality, sectionOptions, "a query without a colon selects nothing, or is ERR_INVALID", needStructured | needContext, metaNoNamespace},
	{"meta/set", Must, sectionOptions, "SET_META_CONTEXT of base:allocation selects it, and BLOCK_STATUS tells of it", needStructured | needContext, metaSet},
	{"meta/set-none", Must, sectionOptions, "SET_META_CONTEXT without queries selects nothing", needStructured | needContext, metaSetNone},
	{"meta/set-wildcard", Must, sectionMeta, "SET_META_CONTEXT of base: selects nothing", needStructured | needContext, metaSetWildcard},
	{"meta/set-duplicates", Must, sectionOptions, "the same query twice selects a context once, or under two ids", needStructured | needContext, metaSetDuplicates},
	{"meta/set-ids", Must, sectionOptions, "every selected context has an id of its own", needStructured | needContexts, metaSetIDs},
	{"meta/set-many", Quality, sectionOptions, "a thousand queries are answered or ERR_TOO_BIG", needStructured | needContext, metaSetMany},
	{"meta/set-replaces", Must, sectionOptions, "SET_META_CONTEXT takes the place of the selection before", needStructured | needContext, metaSetReplaces},
	{"meta/set-failed-clears", Must, sectionOptions, "SET_META_CONTEXT clears the selection even where it fails", needStructured | needContext, metaSetFailedClears},
	{"meta/set-other-export", Should, sectionMeta, "contexts that were selected for another export do not hold", needStructured | needContext | needSize, metaSetOther},
	{"meta/unknown-export", Should, "Option reply types", "contexts of an export that there is not are ERR_UNKNOWN", needStructured | needContext | needNames, metaUnknownExport},
	{"meta/wrong-lengths", Must, sectionOptions, "lengths that do not fit the option are ERR_INVALID", needStructured | needContext, metaWrongLengths},
	{"meta/bytes-too-many", Should, sectionOptions, "bytes after the last query are ERR_INVALID", needStructured | needContext, metaBytesTooMany},
	{"meta/status-unselected", Should, sectionMeta, "BLOCK_STATUS without a context is EINVAL", needStructured | needExport | needSize, metaStatusUnselected},
}

var bothMeta = []wire.Option{wire.OptListMetaContext, wire.OptSetMetaContext}

// structured connects and agrees on structured replies.
func (t *trial) structured() *probe.Conn {
	c := t.haggle()
	t.negotiate(c, probe.Structured)
	return c
}

// meta asks for contexts and returns those that the replies tell of.
func (t *trial) meta(c *probe.Conn, o wire.Option, queries ...string) []probe.Context {
	return selected(t.accepted(c, o, metaRequest(t.target.Export, queries...)))
}

func names(all []probe.Context) []string {
	var n []string
	for _, x := range all {
		n = append(n, x.Name)
	}
	return n
}

func metaListEarly(t *trial) {
	c := t.haggle()
	t.refused(c, wire.OptListMetaContext, metaRequest(t.target.Export), wire.RepAck, wire.RepErrInvalid, wire.RepErrExtHeaderReqd)
	t.answering(c)
}

func metaSetEarly(t *trial) {
	c := t.haggle()
	t.refused(c, wire.OptSetMetaContext, metaRequest(t.target.Export, wire.BaseAllocation), wire.RepErrInvalid, wire.RepErrExtHeaderReqd)
	t.answering(c)
}

func metaListAll(t *trial) {
	if all := names(t.meta(t.structured(), wire.OptListMetaContext)); !slices.Contains(all, wire.BaseAllocation) && !slices.Contains(all, "base:") {
		t.failf("the list is %q, without base:allocation", all)
	}
}

func metaListWildcard(t *trial) {
	if all := names(t.meta(t.structured(), wire.OptListMetaContext, "base:")); !slices.Equal(all, []string{wire.BaseAllocation}) {
		t.failf("the list is %q", all)
	}
}

func metaListExact(t *trial) {
	if all := names(t.meta(t.structured(), wire.OptListMetaContext, wire.BaseAllocation)); !slices.Equal(all, []string{wire.BaseAllocation}) {
		t.failf("the list is %q", all)
	}
}

func metaListDuplicates(t *trial) {
	all := names(t.meta(t.structured(), wire.OptListMetaContext, wire.BaseAllocation, "base:", wire.BaseAllocation))
	if !slices.Equal(all, []string{wire.BaseAllocation}) {
		t.failf("the list is %q", all)
	}
}

func metaListIDs(t *trial) {
	for _, x := range t.meta(t.structured(), wire.OptListMetaContext) {
		if x.ID != 0 {
			t.failf("the id of %s is %d", x.Name, x.ID)
		}
	}
}

// selectsNothing makes sure that queries fit no context.
func (t *trial) selectsNothing(o wire.Option, queries ...string) {
	c := t.structured()
	if all := t.meta(c, o, queries...); len(all) > 0 {
		t.failf("%s of %q is answered with %q", o, queries, names(all))
	}
	t.answering(c)
}

func metaUnknownNamespace(t *trial) {
	for _, o := range bothMeta {
		t.selectsNothing(o, "x-imgtool:nothing", "x-imgtool:")
	}
}

func metaUnknownLeaf(t *trial) {
	for _, o := range bothMeta {
		t.selectsNothing(o, "base:no-such-context", "base:allocation2")
	}
}

func metaNoNamespace(t *trial) {
	for _, o := range bothMeta {
		c := t.structured()
		replies := t.ask(c, o, metaRequest(t.target.Export, "base", ""))
		if r := last(replies); r.Type != wire.RepAck && r.Type != wire.RepErrInvalid || len(replies) > 1 {
			t.failf("%s is answered with %d replies and %s", o, len(replies)-1, describe(r))
		}
		t.answering(c)
	}
}

func metaSet(t *trial) {
	c := t.open(probe.Structured, wire.BaseAllocation)
	if all := names(c.Contexts); !slices.Equal(all, []string{wire.BaseAllocation}) {
		t.failf("%q is selected", all)
	}
	if t.facts.size > 0 {
		t.done(c, wire.Request{Type: wire.CmdBlockStatus, Length: t.facts.small()}, nil)
	}
}

func metaSetNone(t *trial)     { t.selectsNothing(wire.OptSetMetaContext) }
func metaSetWildcard(t *trial) { t.selectsNothing(wire.OptSetMetaContext, "base:") }

func metaSetDuplicates(t *trial) {
	c := t.open(probe.Structured, wire.BaseAllocation, wire.BaseAllocation)
	for i, a := range c.Contexts {
		for _, b := range c.Contexts[:i] {
			if a.ID == b.ID {
				t.failf("the id %d is told twice", a.ID)
			}
		}
	}
	if t.facts.size > 0 {
		t.done(c, wire.Request{Type: wire.CmdBlockStatus, Length: t.facts.small()}, nil)
	}
}

func metaSetIDs(t *trial) {
	ids := map[uint32]string{}
	for _, x := range t.meta(t.structured(), wire.OptSetMetaContext, t.facts.contexts...) {
		if other, taken := ids[x.ID]; taken {
			t.failf("%s and %s have the id %d", other, x.Name, x.ID)
		}
		ids[x.ID] = x.Name
	}
}

func metaSetMany(t *trial) {
	c := t.structured()
	queries := append(slices.Repeat([]string{"x-imgtool:nothing"}, 999), wire.BaseAllocation)
	t.refused(c, wire.OptSetMetaContext, metaRequest(t.target.Export, queries...), wire.RepAck, wire.RepErrTooBig)
	t.answering(c)
}

// noStatus enters transmission and makes sure that BLOCK_STATUS tells nothing.
func (t *trial) noStatus(c *probe.Conn) {
	c.Contexts = nil
	t.enter(c)
	t.denied(c, wire.Request{Type: wire.CmdBlockStatus, Length: t.facts.small()}, nil, wire.EINVAL)
}

func metaSetReplaces(t *trial) {
	c := t.structured()
	t.setContexts(c, wire.BaseAllocation)
	t.meta(c, wire.OptSetMetaContext, "x-imgtool:nothing")
	t.noStatus(c)
}

func metaSetFailedClears(t *trial) {
	c := t.structured()
	t.setContexts(c, wire.BaseAllocation)
	t.refused(c, wire.OptSetMetaContext, []byte{0, 0}, wire.RepErrInvalid)
	t.noStatus(c)
}

func metaSetOther(t *trial) {
	c := t.structured()
	t.ask(c, wire.OptSetMetaContext, metaRequest(t.target.Export+"-other", wire.BaseAllocation))
	t.noStatus(c)
}

func metaUnknownExport(t *trial) {
	c := t.structured()
	for _, o := range bothMeta {
		t.refused(c, o, metaRequest(unknownExport, wire.BaseAllocation), wire.RepErrUnknown)
	}
	t.answering(c)
}

func metaWrongLengths(t *trial) {
	name := appendString(nil, t.target.Export)
	with := func(more ...byte) []byte { return append(name[:len(name):len(name)], more...) }
	for _, x := range []struct {
		what string
		data []byte
	}{
		{"no data", nil},
		{"3 bytes", []byte{0, 0, 0}},
		{"no number of queries", name},
		{"a name that is longer than the data", append(be.AppendUint32(nil, 1000), make([]byte, 8)...)},
		{"a query too few", with(0, 0, 0, 1)},
		{"2^32-1 queries and no room", with(0xff, 0xff, 0xff, 0xff)},
		{"a query that is longer than the data", with(0, 0, 0, 1, 0, 0, 0, 200, 'b', 'a', 's', 'e', ':')},
		{"a query of 4 GiB", with(0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff)},
	} {
		for _, o := range bothMeta {
			t.where = x.what
			c := t.structured()
			t.refused(c, o, x.data, wire.RepErrInvalid)
			t.answering(c)
		}
	}
	t.where = "a query of 5000 bytes"
	c := t.structured()
	t.refused(c, wire.OptListMetaContext, metaRequest(t.target.Export, "base:"+strings.Repeat("x", 5000)),
		wire.RepErrInvalid, wire.RepErrTooBig, wire.RepAck)
	t.answering(c)
}

func metaBytesTooMany(t *trial) {
	for _, o := range bothMeta {
		c := t.structured()
		t.refused(c, o, append(metaRequest(t.target.Export, wire.BaseAllocation), 0, 0, 0), wire.RepErrInvalid)
		t.answering(c)
	}
}

func metaStatusUnselected(t *trial) { t.noStatus(t.structured()) }
