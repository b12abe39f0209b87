package compress

import "io"

// bzip2Stream ends where a bzip2 stream ends: behind the end mark (48 bits at
// any bit position), a checksum of 32 bits and the bits that fill the byte.
// The decoder would look there for one more stream. Should compressed data
// hold the mark by chance, once in 2^45 bytes, the decoder finds its input cut
// short and fails; it never takes wrong data for right.
type bzip2Stream struct {
	source
	hi, lo uint64 // the last 16 bytes
}

const (
	bzip2EndMark  = 0x177245385090
	bzip2MarkMask = 1<<48 - 1
)

func (s *bzip2Stream) ReadByte() (byte, error) {
	for fill := 0; fill < 8; fill++ {
		at := 32 + fill
		if (s.hi<<(64-at)|s.lo>>at)&bzip2MarkMask == bzip2EndMark {
			return 0, io.EOF
		}
	}
	b, err := s.source.ReadByte()
	if err == nil {
		s.hi, s.lo = s.hi<<8|s.lo>>56, s.lo<<8|uint64(b)
	}
	return b, err
}
