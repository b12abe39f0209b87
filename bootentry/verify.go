package bootentry

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Verify compares the entries of a plan, byte by byte, with what is there. The
// result has the file name of each, and nil or what is wrong with it.
func Verify(p Plan) (map[string]error, error) {
	wanted, err := p.entries()
	if err != nil {
		return nil, err
	}
	files, err := os.ReadDir(entriesDir(p.Boot))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	result := map[string]error{}
	for _, w := range wanted {
		// Its counter changes as it is booted.
		i := slices.IndexFunc(files, func(f os.DirEntry) bool {
			id, _ := splitName(f.Name())
			return isConf(f.Name()) && strings.EqualFold(id, w.ID())
		})
		if i < 0 {
			result[w.Name] = errors.New("it is not there")
			continue
		}
		name := files[i].Name()
		text, err := os.ReadFile(filepath.Join(entriesDir(p.Boot), name))
		if err == nil && !bytes.Equal(text, w.Format()) {
			err = errors.New("it is not what was written, or the plain entry has changed since")
		}
		result[name] = err
	}
	return result, nil
}
