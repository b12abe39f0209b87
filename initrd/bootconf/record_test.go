package bootconf

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAppendJSONText(t *testing.T) {
	r := Record{
		Backend: Loop, ImageUUID: testUUID, Verified: "none",
		Attempts: []Attempt{{Pmem, "no pmem device"}, {Loop, ""}},
		Phases:   []Phase{{"setup", 1, 20}, {"image", 20, 300}},
		Modules:  []string{"loop", "erofs"},
	}
	const want = `{"backend":"loop","image_uuid":"` + testUUID + `","verified":"none",` +
		`"attempts":[{"backend":"pmem","error":"no pmem device"},{"backend":"loop","error":""}],` +
		`"phases":[{"name":"setup","start_us":1,"end_us":20},{"name":"image","start_us":20,"end_us":300}],` +
		`"modules":["loop","erofs"]}` + "\n"
	if diff := cmp.Diff(want, string(r.AppendJSON(nil))); diff != "" {
		t.Errorf("AppendJSON (-want +got):\n%s", diff)
	}
	if got := string(r.AppendJSON([]byte("before"))); got != "before"+want {
		t.Errorf("AppendJSON does not append: %q", got)
	}
}

// An empty record has empty arrays and no null: readers loop over them.
func TestAppendJSONEmpty(t *testing.T) {
	const want = `{"backend":"","image_uuid":"","verified":"","attempts":[],"phases":[],"modules":[]}` + "\n"
	if got := string((&Record{}).AppendJSON(nil)); got != want {
		t.Errorf("AppendJSON of the zero record = %q, want %q", got, want)
	}
}

var recordSeeds = []string{
	"", "plain", `"quotes" and \ backslash`, "\x00\x01\x1f\x7f\n\r\t\b\f", "caf\u00e9 \u2028 \u2029 \U0001f600 <>&",
	"\xff\xfe", "a\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80", strings.Repeat("\xe2\x82", 10), "\ufffd",
}

func TestRecordSeeds(t *testing.T) {
	for _, s := range recordSeeds {
		checkRecord(t, s, -1)
		checkRecord(t, s, 1<<62)
	}
}

func FuzzRecord(f *testing.F) {
	for _, s := range recordSeeds {
		f.Add(s, int64(7))
	}
	f.Fuzz(checkRecord)
}

// checkRecord checks that AppendJSON decodes to what encoding/json's text does.
func checkRecord(t *testing.T, s string, n int64) {
	r := Record{
		Backend: Backend(s), ImageUUID: s, Verified: s,
		Attempts: []Attempt{{Backend(s), s}, {Loop, ""}},
		Phases:   []Phase{{s, n, -n}},
		Modules:  []string{s, "x", s},
	}
	text := r.AppendJSON(nil)
	var got, want Record
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&got); err != nil {
		t.Fatalf("decode %q: %v", text, err)
	}
	if rest := bytes.TrimSpace(text[decoder.InputOffset():]); len(rest) > 0 {
		t.Errorf("%q follows the document", rest)
	}
	standard, err := json.Marshal(&r)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(standard, &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("record with %q (-encoding/json +got):\n%s", s, diff)
	}
}

// The manifest is read by other programs: its names are part of the contract.
func TestManifestNames(t *testing.T) {
	text, err := json.Marshal(Manifest{Format: ManifestFormat, Changes: []Change{{"init", "why"}}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"format":1,"kernel_version":"","arch":"","tool_version":"",` +
		`"source":{"path":"","sha256":"","kind":""},` +
		`"image":{"file":"","size":0,"uuid":"","sha256":"","features":null,"dax":false},` +
		`"mini":{"file":"","size":0,"sha256":"","modules":null},` +
		`"changes":[{"path":"init","reason":"why"}]}`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("manifest (-want +got):\n%s", diff)
	}
}
