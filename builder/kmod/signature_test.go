package kmod_test

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"testing"

	"initoverlayfs/builder/kmod"
	"initoverlayfs/builder/kmod/kmodtest"
)

// signed appends a PKCS#7 signature that names these digests.
func signed(t *testing.T, digests ...asn1.ObjectIdentifier) []byte {
	t.Helper()
	type signedData struct {
		Version int
		Digests []pkix.AlgorithmIdentifier `asn1:"set"`
		Content struct{ Type asn1.ObjectIdentifier }
	}
	info := struct {
		Type    asn1.ObjectIdentifier
		Content signedData `asn1:"explicit,tag:0"`
	}{Type: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}, Content: signedData{Version: 1}}
	info.Content.Content.Type = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	for _, d := range digests {
		info.Content.Digests = append(info.Content.Digests, pkix.AlgorithmIdentifier{Algorithm: d})
	}
	der, err := asn1.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	module := append(kmodtest.ELF(kmodtest.Module{File: "kernel/x.ko"}), der...)
	module = append(module, 0, 0, 2, 0, 0, 0, 0, 0)
	module = binary.BigEndian.AppendUint32(module, uint32(len(der)))
	return append(module, "~Module signature appended~\n"...)
}

func TestSignatureDigest(t *testing.T) {
	sha256 := asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	sha512 := asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}
	bare := kmodtest.ELF(kmodtest.Module{File: "kernel/x.ko"})
	good := signed(t, sha256)
	for _, test := range []struct {
		name   string
		module []byte
		want   string
	}{
		{"SHA-256", good, "sha256"},
		{"SHA-512", signed(t, sha512), "sha512"},
		{"two", signed(t, sha256, sha512), ""},
		{"none", signed(t), ""},
		{"unknown", signed(t, asn1.ObjectIdentifier{1, 2, 3}), ""},
		{"not signed", bare, ""},
		{"not PKCS#7", kmodtest.Sign(bare), ""},
		{"cut short", append(bytes.Clone(good[:20]), good[len(good)-40:]...), ""},
	} {
		if got := kmod.SignatureDigest(test.module); got != test.want {
			t.Errorf("%s: SignatureDigest = %q, want %q", test.name, got, test.want)
		}
	}
}

func TestAccelerator(t *testing.T) {
	const cpu = "cpu:type:x86,ven*fam*mod*:feature:*"
	x := open(t, kmodtest.Kernel{
		Version: "1.2.3-test",
		Modules: []kmodtest.Module{
			{File: "kernel/sha256-slow.ko", Aliases: []string{"sha256"}},
			{File: "kernel/sha256-fast.ko", Aliases: []string{"sha256", cpu + "0125*", cpu + "0089*", cpu + "0089*"}},
			{File: "kernel/sha384-plain.ko", Aliases: []string{"sha384"}},
			{File: "kernel/sha512-ssse3.ko", Aliases: []string{"sha512", "crypto-sha512"}},
			{File: "kernel/sha1-odd.ko", Aliases: []string{"sha1", "cpu:type:x86,ven0000fam*mod*:feature:*0001*"}},
		},
	})
	for algorithm, want := range map[string][2]string{
		"sha256": {"sha256_fast", "0089,0125"},
		"sha384": {},
		"sha512": {"sha512_ssse3", "0089"},
		"sha1":   {},
		"":       {},
	} {
		module, features := x.Accelerator(algorithm)
		if got := [2]string{module, features}; got != want {
			t.Errorf("Accelerator(%q) = %q, want %q", algorithm, got, want)
		}
	}
}
