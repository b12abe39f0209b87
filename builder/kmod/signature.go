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

const signatureMagic = "~Module signature appended~\n"

// splitSignature takes a module and its signature apart; a module without one
// is returned as it is.
//
// Behind the module lie the signer's name, the key's identifier and the
// signature, then struct module_signature with their lengths, then the magic
// (include/linux/module_signature.h).
func splitSignature(module []byte) (code, signature []byte, err error) {
	rest, ok := bytes.CutSuffix(module, []byte(signatureMagic))
	if !ok {
		return module, nil, nil
	}
	const trailerBytes = 12
	if len(rest) < trailerBytes {
		return nil, nil, io.ErrUnexpectedEOF
	}
	rest, trailer := rest[:len(rest)-trailerBytes], rest[len(rest)-trailerBytes:]
	// The bytes of the trailer: algo, hash, id_type, signer_len, key_id_len,
	// three of padding, sig_len as a big-endian word.
	signatureBytes := int64(binary.BigEndian.Uint32(trailer[8:]))
	cut := int64(trailer[3]) + int64(trailer[4]) + signatureBytes
	if cut >= int64(len(rest)) {
		return nil, nil, errors.New("it claims to be longer than the module")
	}
	return rest[:int64(len(rest))-cut], rest[int64(len(rest))-signatureBytes:], nil
}

// StripSignature cuts off the signature that is appended to a module; a module
// without one is returned as it is. The kernel is tainted by a module without
// a valid signature, and refuses it under lockdown.
func StripSignature(module []byte) ([]byte, error) {
	code, _, err := splitSignature(module)
	if err != nil {
		return nil, fmt.Errorf("strip module signature: %w", err)
	}
	return code, nil
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
