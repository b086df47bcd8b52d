package schema

import (
	"maps"
	"math/big"
	"slices"
	"strings"
)

// Parts of the formats' patterns.
const (
	formatLeap  = `(\d\d(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)`
	formatDate  = `((\d{4})-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))|` + formatLeap + `-02-29)`
	formatTime  = `(([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d))`
	formatByte  = `(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)`
	formatIPv4  = `(` + formatByte + `(\.` + formatByte + `){3})`
	formatLabel = `([A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?)`
	formatHost  = `(` + formatLabel + `(\.` + formatLabel + `){0,5})`
	formatPath  = `([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})`
	formatEmail = `[A-Za-z0-9_+-]{1,20}(\.[A-Za-z0-9_+-]{1,20}){0,2}@` + formatLabel + `(\.` + formatLabel + `){1,4}`
	formatURI   = `[A-Za-z][A-Za-z0-9+.-]{0,15}://` + formatHost + formatPort
	formatPort  = `(:([1-9]\d{0,3}|[1-5]\d{4}))?`
	formatTail  = `(/(` + formatPath + `+(/` + formatPath + `*)*)?)?(\?(` + formatPath + `|[/?])*)?(#(` + formatPath + `|[/?])*)?`
	formatPtr   = `(/([^/~]|~[01])*)*`
)

// formats are the patterns of the formats of strings: what is legal and usual.
var formats = map[string]string{
	"date":      formatDate,
	"time":      formatTime,
	"date-time": formatDate + `T` + formatTime,
	"duration": `P(\d{1,9}W|(\d{1,9}Y(\d{1,9}M(\d{1,9}D)?)?|\d{1,9}M(\d{1,9}D)?|\d{1,9}D)(T(\d{1,9}H(\d{1,9}M(\d{1,9}S)?)?|\d{1,9}M(\d{1,9}S)?|\d{1,9}S))?` +
		`|T(\d{1,9}H(\d{1,9}M(\d{1,9}S)?)?|\d{1,9}M(\d{1,9}S)?|\d{1,9}S))`,
	"uuid":                  `[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}`,
	"email":                 formatEmail,
	"idn-email":             formatEmail,
	"hostname":              formatHost,
	"idn-hostname":          formatHost,
	"ipv4":                  formatIPv4,
	"ipv6":                  formatIPv6(),
	"uri":                   formatURI + formatTail,
	"iri":                   formatURI + formatTail,
	"uri-reference":         `(` + formatURI + `)?` + formatTail,
	"iri-reference":         `(` + formatURI + `)?` + formatTail,
	"json-pointer":          formatPtr,
	"relative-json-pointer": `(0|[1-9]\d{0,8})(#|` + formatPtr + `)`,
}

// formatIPv6 has every place of the double colon.
func formatIPv6() string {
	const group = `[0-9A-Fa-f]{1,4}`
	list := []string{`(` + group + `:){7}` + group, `::`}
	for before := range 7 {
		head := ""
		if before > 0 {
			head = group + strings.Repeat(":"+group, before-1)
		}
		// At least one group is left out.
		list = append(list, head+`::`+group+strings.Repeat(`(:`+group, 6-before)+strings.Repeat(`)?`, 6-before))
		if before > 0 {
			list = append(list, head+`::`)
		}
	}
	list = append(list, group+strings.Repeat(":"+group, 6)+"::")
	return strings.Join(list, "|")
}

// integerFormats are OpenAPI's, with the bits of the number, negative for a sign.
var integerFormats = map[string]int{"int32": -31, "int64": -63, "uint32": 32, "uint64": 64}

// format takes the format of a schema.
func (d *document) format(n *node, name, at string) {
	if bits, ok := integerFormats[name]; ok {
		limit := new(big.Int).Lsh(big.NewInt(1), uint(max(bits, -bits)))
		least := new(big.Rat)
		if bits < 0 {
			least.SetInt(new(big.Int).Neg(limit))
		}
		n.low = append(n.low, bound{least, false})
		n.high = append(n.high, bound{new(big.Rat).SetInt(limit), true})
		return
	}
	if name == "float" || name == "double" {
		return // every number is read as one
	}
	source, ok := formats[name]
	if !ok {
		known := slices.Sorted(maps.Keys(formats))
		fail(at, "format", "%q is not one of %s", name, strings.Join(known, ", "))
	}
	n.texts = append(n.texts, d.c.pattern("^("+source+")$", at, "format"))
}
