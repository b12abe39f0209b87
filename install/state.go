package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"initoverlayfs/builder"
)

const (
	// folder has all that is published, below the boot folder and below the
	// folder of images.
	folder = "initoverlayfs"
	// stateName is the file in the folder of a kernel that tells its
	// generations.
	stateName   = "installed.json"
	stateFormat = 1
)

// State is what is installed for one kernel.
type State struct {
	Format        int          `json:"format"`
	KernelVersion string       `json:"kernel_version"`
	Current       int          `json:"current"`            // number of the generation that is booted
	Previous      int          `json:"previous,omitempty"` // the one to fall back to; 0: none
	Generations   []Generation `json:"generations"`        // in the order of their numbers
	// Sum is the SHA-256 of the file with an empty sum.
	Sum string `json:"sum"`
}

// Generation is one published pair. Paths are the machine's own.
type Generation struct {
	Number int `json:"number"`
	// Inputs is a digest of all that the pair was made from; empty if that
	// cannot be told.
	Inputs string `json:"inputs,omitempty"`
	// Source is the initramfs that was converted; empty if it was made for the
	// occasion.
	Source         string `json:"source,omitempty"`
	SourceSHA256   string `json:"source_sha256,omitempty"`
	Manifest       string `json:"manifest"`
	ManifestSHA256 string `json:"manifest_sha256"`
	Mini           string `json:"mini"`
	Image          string `json:"image,omitempty"` // empty: it is in the mini-initramfs
	ImageUUID      string `json:"image_uuid"`
}

// files are the paths of a generation.
func (g *Generation) files() []string {
	files := []string{g.Manifest, g.Mini}
	if g.Image != "" {
		files = append(files, g.Image)
	}
	return files
}

// generation finds one by its number.
func (s *State) generation(number int) *Generation {
	for i := range s.Generations {
		if s.Generations[i].Number == number {
			return &s.Generations[i]
		}
	}
	return nil
}

// retire takes out the generations that are neither current nor previous.
func (s *State) retire() []Generation {
	var retired, kept []Generation
	for _, g := range s.Generations {
		if g.Number == s.Current || g.Number == s.Previous {
			kept = append(kept, g)
		} else {
			retired = append(retired, g)
		}
	}
	s.Generations = kept
	return retired
}

// readState reads the state of a kernel's folder; nil if nothing is installed.
func readState(path string) (*State, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := new(State)
	if err := json.Unmarshal(text, s); err != nil {
		return nil, damaged(path, err)
	}
	// Nothing in it may be doubtful: paths that it names are removed.
	if whole, err := s.encode(); err != nil || !bytes.Equal(whole, text) {
		return nil, damaged(path, errors.New("its content is not what was written"))
	}
	if s.Format != stateFormat {
		return nil, fmt.Errorf("%s: format %d; this program knows %d", path, s.Format, stateFormat)
	}
	if s.generation(s.Current) == nil || s.Previous != 0 && s.generation(s.Previous) == nil {
		return nil, damaged(path, fmt.Errorf("generation %d or %d is not in it", s.Current, s.Previous))
	}
	for _, g := range s.Generations {
		for _, file := range g.files() {
			place := filepath.Join("/", folder, s.KernelVersion, strconv.Itoa(g.Number))
			if g.Number <= 0 || filepath.Clean(file) != file || !strings.HasSuffix(filepath.Dir(file), place) {
				return nil, damaged(path, fmt.Errorf("generation %d: bad path %q", g.Number, file))
			}
		}
	}
	return s, nil
}

// errDamaged is wrapped by the error about a state that is not what was written.
var errDamaged = errors.New("damaged")

func damaged(path string, err error) error {
	return &builder.HintedError{
		Err:    fmt.Errorf("%s is %w: %w", path, errDamaged, err),
		Advice: "remove it and install the kernel again; the plain initramfs is not concerned",
	}
}

// encode gives the file's content.
func (s *State) encode() ([]byte, error) {
	c := *s
	c.Sum = ""
	text, err := json.MarshalIndent(&c, "", "  ")
	if err != nil {
		return nil, err
	}
	c.Sum = digest(text)
	text, err = json.MarshalIndent(&c, "", "  ")
	return append(text, '\n'), err
}

// write replaces the state, whole.
func (s *State) write(path string) error {
	text, err := s.encode()
	if err != nil {
		return err
	}
	return builder.WriteFile(path, publicMode, func(f *os.File) error {
		_, err := f.Write(text)
		return err
	})
}

// numbered gives the numbers of the generation folders in dir.
func numbered(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var numbers []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n > 0 && strconv.Itoa(n) == e.Name() && e.IsDir() {
			numbers = append(numbers, n)
		}
	}
	return numbers, err
}
