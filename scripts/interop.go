// Reads a log of ours with Go's sumdb, which knows nothing of us; exits with 1 at the first thing that does not hold.
// interop.py says what is in the folder.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height = 8

// The records at the edges of tiles of every level; proven from the tiles as far as the tree has them.
var edges = []int64{0, 1, 254, 255, 256, 257, 65534, 65535, 65536, 65537}

func main() {
	if err := check(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func check(folder string) error {
	vkey, err := os.ReadFile(filepath.Join(folder, "vkey"))
	if err != nil {
		return err
	}
	verifier, err := note.NewVerifier(strings.TrimSpace(string(vkey)))
	if err != nil {
		return fmt.Errorf("vkey: %w", err)
	}

	trees := map[int64]tlog.Tree{}
	err = each(folder, "checkpoints", func(data []byte, name string) error {
		tree, err := openCheckpoint(verifier, data)
		trees[tree.N] = tree
		return err
	})
	if err != nil {
		return err
	}
	err = each(folder, "consistency", func(data []byte, name string) error { return checkConsistency(trees, data, name) })
	if err != nil {
		return err
	}
	err = each(folder, "proofs", func(data []byte, name string) error { return checkProof(verifier, data) })
	if err != nil {
		return err
	}
	return checkTiles(verifier, tileFolder(filepath.Join(folder, "tiles")), trees)
}

// each hands over every file of a folder, of which there has to be one, and names the first that does not hold.
func each(folder, kind string, call func(data []byte, name string) error) error {
	paths, err := filepath.Glob(filepath.Join(folder, kind, "*"))
	if err != nil || len(paths) == 0 {
		return fmt.Errorf("%s: there are none", kind)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err == nil {
			err = call(data, filepath.Base(path))
		}
		if err != nil {
			return fmt.Errorf("%s/%s: %w", kind, filepath.Base(path), err)
		}
	}
	return nil
}

// openCheckpoint reads C2SP's three lines itself: tlog.ParseTree knows only those of the checksum database.
func openCheckpoint(verifier note.Verifier, data []byte) (tlog.Tree, error) {
	var tree tlog.Tree
	opened, err := note.Open(data, note.VerifierList(verifier))
	if err != nil {
		return tree, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() {
		return tree, errors.New("not three lines, of which the first is the key's name")
	}
	if tree.N, err = strconv.ParseInt(lines[1], 10, 64); err != nil {
		return tree, err
	}
	tree.Hash, err = tlog.ParseHash(lines[2])
	return tree, err
}

func checkConsistency(trees map[int64]tlog.Tree, data []byte, name string) error {
	var from, to int64
	if _, err := fmt.Sscanf(name, "%d-%d", &from, &to); err != nil {
		return err
	}
	proof, err := parseHashes(strings.Split(strings.TrimSuffix(string(data), "\n"), "\n"))
	if err != nil {
		return err
	}
	return tlog.CheckTree(proof, to, trees[to].Hash, from, trees[from].Hash)
}

func checkProof(verifier note.Verifier, data []byte) error {
	head, checkpoint, _ := bytes.Cut(data, []byte("\n\n"))
	tree, err := openCheckpoint(verifier, checkpoint)
	if err != nil {
		return err
	}
	lines := strings.Split(string(head), "\n")
	if len(lines) < 3 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return errors.New("no tlog-proof")
	}
	entry, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[1], "extra "))
	if err != nil {
		return err
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[2], "index "), 10, 64)
	if err != nil {
		return err
	}
	proof, err := parseHashes(lines[3:])
	if err != nil {
		return err
	}
	return tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(entry))
}

func parseHashes(lines []string) ([]tlog.Hash, error) {
	var hashes []tlog.Hash
	for _, line := range lines {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return nil, err
		}
		hashes = append(hashes, hash)
	}
	return hashes, nil
}

// checkTiles builds the tree anew from the entries, which has to give the same tiles and the root of every
// checkpoint. Then it takes the tiles as a client does, which has no entries and proves whatever it reads.
func checkTiles(verifier note.Verifier, folder tileFolder, trees map[int64]tlog.Tree) error {
	data, err := os.ReadFile(filepath.Join(string(folder), "checkpoint"))
	if err != nil {
		return err
	}
	head, err := openCheckpoint(verifier, data)
	if err != nil {
		return fmt.Errorf("tiles/checkpoint: %w", err)
	}
	built, err := folder.buildTree(head.N)
	if err != nil {
		return err
	}
	if err := folder.compare(head.N, built); err != nil {
		return err
	}
	client := tlog.TileHashReader(head, folder)
	trees[head.N] = head
	for _, tree := range trees {
		if err := checkTree(head, tree, built, client); err != nil {
			return fmt.Errorf("the checkpoint of %d: %w", tree.N, err)
		}
	}
	for _, index := range append(edges, head.N-1) {
		if index < 0 || index >= head.N {
			continue
		}
		proof, err := tlog.ProveRecord(head.N, index, client)
		if err == nil {
			err = tlog.CheckRecord(proof, head.N, head.Hash, index, built[tlog.StoredHashIndex(0, index)])
		}
		if err != nil {
			return fmt.Errorf("record %d from the tiles: %w", index, err)
		}
	}
	return nil
}

func checkTree(head, tree tlog.Tree, built storedHashes, client tlog.HashReader) error {
	if tree.N == 0 {
		if tree.Hash != sha256.Sum256(nil) {
			return errors.New("an empty tree with a root of something")
		}
		return nil
	}
	root, err := tlog.TreeHash(tree.N, built)
	if err != nil {
		return err
	}
	if root != tree.Hash {
		return errors.New("the entries have another root")
	}
	proof, err := tlog.ProveTree(head.N, tree.N, client)
	if err != nil {
		return err
	}
	return tlog.CheckTree(proof, head.N, head.Hash, tree.N, tree.Hash)
}

// storedHashes are all hashes of a tree, in tlog's order.
type storedHashes []tlog.Hash

func (stored storedHashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index >= int64(len(stored)) {
			return nil, errors.New("larger than the tiles")
		}
		hashes[i] = stored[index]
	}
	return hashes, nil
}

// A tileFolder is a directory in the layout of C2SP's tlog-tiles.
type tileFolder string

// read gives the file of a tile. The checksum database has the height in its paths, where C2SP has it fixed.
func (folder tileFolder) read(tile tlog.Tile, level string) ([]byte, error) {
	below := strings.TrimPrefix(tile.Path(), fmt.Sprintf("tile/%d/%d/", tile.H, tile.L))
	return os.ReadFile(filepath.Join(string(folder), "tile", level, below))
}

func (folder tileFolder) buildTree(size int64) (storedHashes, error) {
	var built storedHashes
	for _, tile := range tilesOf(0, size) {
		bundle, err := folder.read(tile, "entries")
		if err != nil {
			return nil, err
		}
		end := tile.N<<height + int64(tile.W)
		for n := tile.N << height; n < end; n++ {
			if len(bundle) < 2 || len(bundle)-2 < int(binary.BigEndian.Uint16(bundle)) {
				return nil, fmt.Errorf("entry %d is cut short", n)
			}
			entry := bundle[2 : 2+int(binary.BigEndian.Uint16(bundle))]
			hashes, err := tlog.StoredHashes(n, entry, built)
			if err != nil {
				return nil, err
			}
			built, bundle = append(built, hashes...), bundle[2+len(entry):]
		}
		if len(bundle) > 0 {
			return nil, fmt.Errorf("more than entries behind entry %d", end-1)
		}
	}
	return built, nil
}

// compare holds every tile to what tlog would have written.
func (folder tileFolder) compare(size int64, built storedHashes) error {
	for level := 0; size>>(height*level) > 0; level++ {
		for _, tile := range tilesOf(level, size) {
			want, err := tlog.ReadTileData(tile, built)
			if err != nil {
				return err
			}
			got, err := folder.read(tile, strconv.Itoa(level))
			if err != nil {
				return err
			}
			if !bytes.Equal(got, want) {
				return fmt.Errorf("%s is not what tlog makes of the entries", tile.Path())
			}
		}
	}
	return nil
}

// tilesOf gives the tiles of a level, the last as wide as it gets: tlog.NewTiles may give each narrower one too.
func tilesOf(level int, size int64) []tlog.Tile {
	var tiles []tlog.Tile
	for left := size >> (height * level); left > 0; left -= 1 << height {
		tile := tlog.Tile{H: height, L: level, N: int64(len(tiles)), W: 1 << height}
		if left < 1<<height {
			tile.W = int(left)
		}
		tiles = append(tiles, tile)
	}
	return tiles
}

// Height, ReadTiles and SaveTiles make it a tlog.TileReader.
func (folder tileFolder) Height() int { return height }

func (folder tileFolder) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var data [][]byte
	for _, tile := range tiles {
		hashes, err := folder.read(tile, strconv.Itoa(tile.L))
		if err != nil {
			return nil, err
		}
		data = append(data, hashes)
	}
	return data, nil
}

func (folder tileFolder) SaveTiles(tiles []tlog.Tile, data [][]byte) {}
