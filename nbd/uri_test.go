package nbd_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/nbd"
)

func params(pairs ...string) map[string]string {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

func TestParseURI(t *testing.T) {
	for text, want := range map[string]nbd.URI{
		"nbd://example.com":                             {Network: "tcp", Address: "example.com:10809"},
		"nbd://example.com/":                            {Network: "tcp", Address: "example.com:10809"},
		"nbd://example.com/disk":                        {Network: "tcp", Address: "example.com:10809", Export: "disk"},
		"nbd://example.com//disk":                       {Network: "tcp", Address: "example.com:10809", Export: "/disk"},
		"nbd://example.com/hello%20world":               {Network: "tcp", Address: "example.com:10809", Export: "hello world"},
		"nbd://example.com/a+b%3F%23%2f%c3%a9":          {Network: "tcp", Address: "example.com:10809", Export: "a+b?#/é"},
		"nbd://example.com:99/":                         {Network: "tcp", Address: "example.com:99"},
		"nbd://[::1]":                                   {Network: "tcp", Address: "[::1]:10809"},
		"nbd://[fe80::1%25eth0]:99/x":                   {Network: "tcp", Address: "[fe80::1%eth0]:99", Export: "x"},
		"nbd:///x":                                      {Network: "tcp", Address: "localhost:10809", Export: "x"},
		"NBD://h/x":                                     {Network: "tcp", Address: "h:10809", Export: "x"},
		"nbds://alice@h":                                {TLS: true, Network: "tcp", Address: "h:10809", User: "alice"},
		"nbds://a%40b@h/x?tls-psk-file=/k&tls-type=psk": {TLS: true, Network: "tcp", Address: "h:10809", User: "a@b", Export: "x", Params: params("tls-psk-file", "/k", "tls-type", "psk")},
		"nbds://h?tls-certificates=/c&tls-hostname=o&tls-verify-peer=0": {TLS: true, Network: "tcp", Address: "h:10809",
			Params: params("tls-certificates", "/c", "tls-hostname", "o", "tls-verify-peer", "0")},
		"nbd+unix:///disk?socket=sock":             {Network: "unix", Address: "sock", Export: "disk"},
		"nbd+unix:///?socket=/tmp/a+b%20c;d":       {Network: "unix", Address: "/tmp/a+b c;d"},
		"nbd+unix:///?socket=%00/abstract":         {Network: "unix", Address: "\x00/abstract"},
		"nbds+unix://bob@/x?socket=s":              {TLS: true, Network: "unix", Address: "s", Export: "x", User: "bob"},
		"nbd+vsock:///x":                           {Network: "vsock", Address: "2:10809", Export: "x"},
		"nbd+vsock://1234:4294967295":              {Network: "vsock", Address: "1234:4294967295"},
		"nbds+vsock://3/?tls-type=x509":            {TLS: true, Network: "vsock", Address: "3:10809", Params: params("tls-type", "x509")},
		"nbd+unix:///a%2Fb/c?socket=/run/nbd.sock": {Network: "unix", Address: "/run/nbd.sock", Export: "a/b/c"},
	} {
		got, err := nbd.ParseURI(text)
		if err != nil {
			t.Error(err)
			continue
		}
		if !same(got, want) {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
		again, err := nbd.ParseURI(got.String())
		if err != nil || !same(again, want) {
			t.Errorf("%s is written as %s: %+v, %v", text, got, again, err)
		}
	}
}

// same compares URIs; no parameters are as good as an empty map.
func same(a, b nbd.URI) bool {
	equal := maps.Equal(a.Params, b.Params)
	a.Params, b.Params = nil, nil
	return equal && a.TLS == b.TLS && a.Network == b.Network && a.Address == b.Address && a.Export == b.Export && a.User == b.User
}

func TestParseURIRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                                     "scheme",
		"disk.img":                             "scheme",
		"http://h/":                            "scheme",
		"nbd+tcp://h/":                         "scheme",
		"nbdx://h/":                            "scheme",
		"nbd+ssh://h/":                         "scheme",
		"nbd:h:10809":                          "//",
		"nbd:unix:/s":                          "//",
		"nbd://h/a#b":                          "fragment",
		"nbd://h:0":                            "port",
		"nbd://h:65536":                        "port",
		"nbd://h:x":                            "port",
		"nbd://h::":                            "host",
		"nbd://a b/":                           "host",
		"nbd://[::1":                           "]",
		"nbd://h/%zz":                          "escape",
		"nbd://h/a%00b":                        "NUL",
		"nbd://h/" + strings.Repeat("x", 4097): "4096",
		"nbd://h?socket=/s":                    "socket",
		"nbd+unix:///x":                        "socket",
		"nbd+unix:///x?socket=":                "socket",
		"nbd+unix://h/x?socket=/s":             "host",
		"nbd+unix:///x?socket=/s&socket=/t":    "twice",
		"nbd+unix:///x?socket=%zz":             "encoded",
		"nbd+vsock://host/":                    "vsock",
		"nbd+vsock://4294967296/":              "vsock",
		"nbd://h?x-experiment=1":               "x-experiment",
		"nbd://h?tls-hostname=x":               "TLS",
		"nbds://h?tls-verify-peer=maybe":       "tls-verify-peer",
		"nbds://h?tls-type=psk":                "tls-psk-file",
		"nbds://h?tls-type=anon":               "anon",
		"nbds://h?tls-type=x":                  "tls-type",
		"nbds://u:secret@h":                    "password",
		"nbds://h?tls-priority=NORMAL":         "tls-priority",
		"nbd+unix:///x?socket=/a%00b":          "NUL",
		"nbd://h/x?" + strings.Repeat("a=1&", 1000): "twice",
	} {
		if u, err := nbd.ParseURI(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %+v, %v, want an error about %q", text, u, err, want)
		}
	}
}

// FuzzURI checks that what is taken can be written and read again.
func FuzzURI(f *testing.F) {
	for _, text := range []string{"nbd://h:1/x", "nbds+unix://u@/x?socket=%00a&tls-type=x509", "nbd+vsock://2:3/", "nbds://[::1%25a]?tls-psk-file=k"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := nbd.ParseURI(text)
		if err != nil {
			return
		}
		again, err := nbd.ParseURI(u.String())
		if err != nil || !same(u, again) {
			t.Errorf("%q is %+v, written as %q, which is %+v, %v", text, u, u, again, err)
		}
	})
}

// TestLocalFiles: a URI from elsewhere must not make us read files.
func TestLocalFiles(t *testing.T) {
	for _, uri := range []string{"nbds://localhost:1/?tls-certificates=/nowhere", "nbds://u@localhost:1/?tls-psk-file=/nowhere"} {
		if _, err := nbd.Dial(t.Context(), uri, nbd.Options{}); err == nil || !strings.Contains(err.Error(), "not allowed") {
			t.Errorf("%s: %v", uri, err)
		}
		if _, err := nbd.Dial(t.Context(), uri, nbd.Options{AllowLocalFiles: true}); err == nil || strings.Contains(err.Error(), "not allowed") {
			t.Errorf("%s, with files allowed: %v", uri, err)
		}
	}
}
