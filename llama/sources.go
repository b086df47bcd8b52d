package llama

import _ "github.com/gallop-llm/gallop/third_party" // this package is compiled anew when the C files there change
