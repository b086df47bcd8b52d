{{define "source"}}      url "{{.URL}}"
      sha256 "{{.SHA256}}"
{{end -}}
class Gallop < Formula
  desc "Local GGUF chat that runs only the layers a prompt needs"
  homepage "{{.Homepage}}"
  version "{{.Number}}"
  license "MIT"
{{if or .Archives.linuxamd64 .Archives.linuxarm64}}
  on_linux do
{{- with .Archives.linuxamd64}}
    on_intel do
{{template "source" .}}    end
{{- end}}
{{- with .Archives.linuxarm64}}
    on_arm do
{{template "source" .}}    end
{{- end}}
  end
{{end}}
{{- if or .Archives.darwinarm64 .Archives.darwinamd64}}
  on_macos do
{{- with .Archives.darwinarm64}}
    on_arm do
{{template "source" .}}    end
{{- end}}
{{- with .Archives.darwinamd64}}
    on_intel do
{{template "source" .}}    end
{{- end}}
  end
{{end}}
  def install
    bin.install "bin/gallop"
    (lib/"gallop").install Dir["lib/gallop/*"]
    man1.install Dir["share/man/man1/*.1"]
    bash_completion.install "share/bash-completion/completions/gallop"
    zsh_completion.install "share/zsh/site-functions/_gallop"
    fish_completion.install "share/fish/vendor_completions.d/gallop.fish"
  end

  test do
    assert_match "gallop {{.Tag}}", shell_output("#{bin}/gallop version")
  end
end
