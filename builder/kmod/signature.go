package kmod

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	signatureMagic = "~Module signature appended~\n"
	// signatureTrailer is the size of struct module_signature.
	signatureTrailer = 12
	// SignatureTailBytes is how much of a module's end tells its signature.
	SignatureTailBytes = signatureTrailer + int64(len(signatureMagic))
)

// SignatureSize gives the size of the signature that is appended to a module, 0
// if there is none. tail is its end, at least SignatureTailBytes of it or all.
//
// Behind the module lie the signer's name, the key's identifier and the
// signature, then struct module_signature with their lengths, then the magic
// (include/linux/module_signature.h).
func SignatureSize(tail []byte, moduleBytes int64) (int64, error) {
	rest, ok := bytes.CutSuffix(tail, []byte(signatureMagic))
	if !ok {
		return 0, nil
	}
	if len(rest) < signatureTrailer {
		return 0, fmt.Errorf("module signature: %w", io.ErrUnexpectedEOF)
	}
	trailer := rest[len(rest)-signatureTrailer:]
	// The bytes of the trailer: algo, hash, id_type, signer_len, key_id_len,
	// three of padding, sig_len as a big-endian word.
	size := int64(trailer[3]) + int64(trailer[4]) + int64(binary.BigEndian.Uint32(trailer[8:])) + SignatureTailBytes
	if size >= moduleBytes {
		return 0, errors.New("module signature: it claims to be longer than the module")
	}
	return size, nil
}

// splitSignature takes a module and the message of its signature apart; a module
// without one is returned as it is.
func splitSignature(module []byte) (code, signature []byte, err error) {
	size, err := SignatureSize(module, int64(len(module)))
	if err != nil || size == 0 {
		return module, nil, err
	}
	code, rest := module[:int64(len(module))-size], module[:int64(len(module))-SignatureTailBytes]
	trailer := module[len(rest):]
	return code, rest[len(rest)-int(binary.BigEndian.Uint32(trailer[8:])):], nil
}

// StripSignature cuts off the signature that is appended to a module; a module
// without one is returned as it is. The kernel is tainted by a module without
// a valid signature, and refuses it under lockdown.
func StripSignature(module []byte) ([]byte, error) {
	code, _, err := splitSignature(module)
	return code, err
}

// digests are the names that the kernel's crypto API has for the algorithms by
// which modules are signed.
var digests = map[string]string{
	"1.3.14.3.2.26":           "sha1",
	"2.16.840.1.101.3.4.2.1":  "sha256",
	"2.16.840.1.101.3.4.2.2":  "sha384",
	"2.16.840.1.101.3.4.2.3":  "sha512",
	"2.16.840.1.101.3.4.2.8":  "sha3-256",
	"2.16.840.1.101.3.4.2.9":  "sha3-384",
	"2.16.840.1.101.3.4.2.10": "sha3-512",
}

// SignatureDigest returns the algorithm that the kernel computes over a module
// before it loads it, as its crypto API names it: sha256. It is empty for a
// module that is not signed, and where the signature does not tell.
func SignatureDigest(module []byte) string {
	_, signature, err := splitSignature(module)
	if err != nil {
		return ""
	}
	// The beginning of a ContentInfo with SignedData, RFC 2315.
	var info struct {
		Type    asn1.ObjectIdentifier
		Content struct {
			Version int
			Digests []pkix.AlgorithmIdentifier `asn1:"set"`
		} `asn1:"explicit,tag:0"`
	}
	if _, err := asn1.Unmarshal(signature, &info); err != nil || len(info.Content.Digests) != 1 {
		return ""
	}
	return digests[info.Content.Digests[0].Algorithm.String()]
}
