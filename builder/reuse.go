package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// copyImage copies the image of an earlier build in dir into the empty file f,
// if it is the one that would be made of this tree: the UUID stands for all that
// decides an image's bytes. On an error f is empty.
func (t *fullTree) copyImage(ctx context.Context, f *os.File, dir, kver string, epoch int64) (image Image, err error) {
	m, err := ReadManifest(filepath.Join(dir, manifestName(kver)))
	if err != nil {
		return Image{}, err
	}
	if t.options.UUID != nil {
		return Image{}, errors.New("the UUID that this one is to have does not tell its content")
	}
	id, err := t.imageIdentity(ctx, epoch)
	if err != nil {
		return Image{}, err
	}
	if m.Image.UUID != id.UUID.String() {
		return Image{}, errors.New("it is of another tree, or made in another way")
	}
	old, err := os.Open(filepath.Join(dir, m.Image.File))
	if err != nil {
		return Image{}, err
	}
	defer old.Close()
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Truncate(0))
		}
	}()
	if _, err := io.Copy(io.NewOffsetWriter(f, 0), old); err != nil {
		return Image{}, err
	}
	if image, err = InspectImage(f); err != nil {
		return Image{}, err
	}
	if image.SHA256 != m.Image.SHA256 {
		return Image{}, fmt.Errorf("%s is not what its manifest says: its sha256 is %s", old.Name(), image.SHA256)
	}
	return image, nil
}
