package bootconf

import (
	"errors"
	"strconv"
	"strings"
)

// UUID is a filesystem's identity in the byte order in which it is printed.
type UUID [16]byte

// ParseUUID reads 32 hexadecimal digits, grouped by hyphens or not.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	digits := strings.ReplaceAll(s, "-", "")
	if len(digits) != 2*len(u) {
		return UUID{}, errors.New("bad UUID " + strconv.Quote(s))
	}
	for i := range u {
		n, err := strconv.ParseUint(digits[2*i:2*i+2], 16, 8)
		if err != nil {
			return UUID{}, errors.New("bad UUID " + strconv.Quote(s))
		}
		u[i] = byte(n)
	}
	return u, nil
}

// IsZero reports whether u is the nil UUID.
func (u UUID) IsZero() bool { return u == UUID{} }

// String gives the form 8-4-4-4-12.
func (u UUID) String() string {
	b := make([]byte, 0, 36)
	for i, c := range u {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b = append(b, '-')
		}
		b = append(b, hexDigits[c>>4], hexDigits[c&0xf])
	}
	return string(b)
}

const hexDigits = "0123456789abcdef"
