package bootconf

import (
	"strconv"
	"unicode/utf8"
)

// Record is what storage-init tells the booted system; it is RecordPath.
type Record struct {
	Backend   Backend   `json:"backend"`
	ImageUUID string    `json:"image_uuid"`
	Verified  string    `json:"verified"` // none, verity or digest
	Attempts  []Attempt `json:"attempts"`
	Phases    []Phase   `json:"phases"`
	Modules   []string  `json:"modules"`
}

// Attempt is one backend that was tried. Error is empty for the one that served.
type Attempt struct {
	Backend Backend `json:"backend"`
	Error   string  `json:"error"`
}

// Phase is one stretch of storage-init's run, on the monotonic clock.
type Phase struct {
	Name    string `json:"name"`
	StartUS int64  `json:"start_us"` // microseconds since the kernel started
	EndUS   int64  `json:"end_us"`
}

// AppendJSON appends the record's JSON to b. It is what encoding/json would
// write, without encoding/json.
func (r *Record) AppendJSON(b []byte) []byte {
	b = append(b, `{"backend":`...)
	b = appendString(b, string(r.Backend))
	b = append(b, `,"image_uuid":`...)
	b = appendString(b, r.ImageUUID)
	b = append(b, `,"verified":`...)
	b = appendString(b, r.Verified)
	b = append(b, `,"attempts":[`...)
	for i, a := range r.Attempts {
		b = appendComma(b, i)
		b = append(b, `{"backend":`...)
		b = appendString(b, string(a.Backend))
		b = append(b, `,"error":`...)
		b = appendString(b, a.Error)
		b = append(b, '}')
	}
	b = append(b, `],"phases":[`...)
	for i, p := range r.Phases {
		b = appendComma(b, i)
		b = append(b, `{"name":`...)
		b = appendString(b, p.Name)
		b = append(b, `,"start_us":`...)
		b = strconv.AppendInt(b, p.StartUS, 10)
		b = append(b, `,"end_us":`...)
		b = strconv.AppendInt(b, p.EndUS, 10)
		b = append(b, '}')
	}
	b = append(b, `],"modules":[`...)
	for i, m := range r.Modules {
		b = appendComma(b, i)
		b = appendString(b, m)
	}
	return append(b, "]}\n"...)
}

func appendComma(b []byte, i int) []byte {
	if i > 0 {
		b = append(b, ',')
	}
	return b
}

// appendString appends s as a JSON string. Bytes that are not UTF-8 become
// U+FFFD, as encoding/json has it.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < 0x20 || r == 0x7f:
			b = append(b, `\u00`...)
			b = append(b, hexDigits[r>>4], hexDigits[r&0xf])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}
