// Command gallop chats with local GGUF models through stock llama.cpp, with
// layers skipped at will.
package main

import (
	"os"

	_ "golang.org/x/crypto/x509roots/fallback" // for systems without certificates: a bare Debian has none
)

func main() {
	prepareConsole()
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
