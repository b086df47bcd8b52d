// Package libs finds llama.cpp's published libraries, and fetches them where they
// are missing.
//
// # Basics
//
// [Install] fetches the libraries into the user's cache folder, once. [Load] opens
// what is installed, GPU modules included; package llama works from then on.
// [SearchPath] says where libraries are looked for.
//
// # Caveats
//
// Install checks each archive against the hash that this package contains, and follows
// npm's configuration: registry, token, proxy, certificates. npm itself is not needed where
// that names a registry, or the linker has put one into the program. Without a network,
// [Options].From takes archives, or put llama.cpp's libraries of the release [llama.Release]
// into a folder and set the environment variable [llama.EnvLibrary] to it: then no
// other folder is looked at.
//
// Nothing here prints, and Load fetches nothing.
package libs
