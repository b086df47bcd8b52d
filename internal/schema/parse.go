package schema

import (
	"encoding/json"
	"math/big"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// kind is a set of the types of JSON values.
type kind uint8

const (
	null kind = 1 << iota
	boolean
	objects
	arrays
	texts
	numbers
	allKinds = 1<<iota - 1
)

// kindOf is a value's type.
func kindOf(v any) kind {
	switch v.(type) {
	case nil:
		return null
	case bool:
		return boolean
	case string:
		return texts
	case json.Number:
		return numbers
	case []any:
		return arrays
	}
	return objects
}

// bound is a number's limit.
type bound struct {
	at     *big.Rat
	beside bool // the limit itself is out
}

// property is a named part of an object.
type property struct {
	name string
	is   *node
}

// patterned are the properties whose names match.
type patterned struct {
	names *dfa
	is    *node
}

// values are those of an enum.
type values struct {
	list []any
	keys map[string]bool // canonical
}

func (c *converter) newValues(list []any) values {
	v := values{list, map[string]bool{}}
	for _, x := range list {
		k := canonical(x)
		c.tick(1 + len(k)/8)
		v.keys[k] = true
	}
	return v
}

// node is a parsed schema. Limits of -1 are absent.
type node struct {
	id       int    // 1, 2, … in the order of parsing
	pointer  string // within its document
	resource string // what its references are relative to

	never bool // the schema false
	free  bool // the schema true, or one that says no more

	kinds   kind
	integer bool     // its numbers are whole
	lists   []values // of each enum and const

	low, high []bound

	minLength, maxLength int
	texts                []*dfa // patterns and formats, all must match

	properties       []property
	patterns         []patterned
	additional       *node
	names            *node
	required         []string
	minProps         int
	maxProps         int
	unevaluatedProps *node

	prefix           []*node
	items            *node
	minItems         int
	maxItems         int
	unevaluatedItems *node

	all          []*node // of allOf and $ref
	anyOf, oneOf []*node
}

// document is one schema source.
type document struct {
	c     *converter
	root  any
	nodes map[string]*node  // by pointer
	names map[string]string // pointers of resources ($id) and anchors (resource#anchor)
	bases map[string]string // resources of the pointers that $id begins
}

func (c *converter) parse(source []byte) *node {
	d := &document{c: c, root: decode(source), nodes: map[string]*node{}, names: map[string]string{"": ""}, bases: map[string]string{}}
	d.scan(d.root, "", "")
	return d.node(d.root, "", d.base(""))
}

// scan finds the names that references may use.
func (d *document) scan(v any, at, base string) {
	d.c.tick(1)
	switch v := v.(type) {
	case []any:
		for i, x := range v {
			d.scan(x, pointer(at, strconv.Itoa(i)), base)
		}
	case *object:
		if id, ok := v.values["$id"].(string); ok {
			base = resolve(base, strings.TrimSuffix(id, "#"))
			d.names[base], d.bases[at] = at, base
		}
		for _, keyword := range []string{"$anchor", "$dynamicAnchor"} {
			if anchor, ok := v.values[keyword].(string); ok {
				d.names[base+"#"+anchor] = at
			}
		}
		for _, k := range v.keys {
			switch k {
			case "enum", "const", "default", "examples", "example":
			default:
				d.scan(v.values[k], pointer(at, k), base)
			}
		}
	}
}

// resolve makes a reference absolute, as far as its base is.
func resolve(base, reference string) string {
	u, err := url.Parse(reference)
	if err != nil {
		return reference
	}
	if b, err := url.Parse(base); err == nil {
		u = b.ResolveReference(u)
	}
	return u.String()
}

// base is the resource that a pointer lies in.
func (d *document) base(at string) string {
	for {
		if b, ok := d.bases[at]; ok {
			return b
		}
		i := strings.LastIndexByte(at, '/')
		if i < 0 {
			return ""
		}
		at = at[:i]
	}
}

// find gives the value that a reference means, and its pointer.
func (d *document) find(reference, base, at string) (any, string) {
	const keyword = "$ref"
	name, fragment, _ := strings.Cut(reference, "#")
	resource := base
	if name != "" {
		resource = resolve(base, name)
	}
	start, ok := d.names[resource]
	if !ok {
		fail(at, keyword, "%q is outside of this schema; only its own parts can be referred to", reference)
	}
	if fragment, err := url.PathUnescape(fragment); err == nil && fragment != "" && fragment[0] != '/' {
		if start, ok = d.names[resource+"#"+fragment]; !ok {
			fail(at, keyword, "there is no anchor %q", fragment)
		}
		return d.walk(start, "", reference, at), start
	} else if err == nil {
		return d.walk(start, fragment, reference, at), start + fragment
	}
	fail(at, keyword, "%q is no reference", reference)
	return nil, ""
}

// walk follows a JSON pointer.
func (d *document) walk(start, rest, reference, at string) any {
	v := d.root
	path := strings.Split(start+rest, "/")[1:]
	for _, part := range path {
		part = strings.NewReplacer("~1", "/", "~0", "~").Replace(part)
		ok := false
		switch x := v.(type) {
		case *object:
			v, ok = x.values[part]
		case []any:
			if i, err := strconv.Atoi(part); err == nil && i >= 0 && i < len(x) && strconv.Itoa(i) == part {
				v, ok = x[i], true
			}
		}
		if !ok {
			fail(at, "$ref", "%q leads nowhere", reference)
		}
	}
	return v
}

// annotations have no effect on what is valid.
var annotations = []string{
	"$schema", "$id", "$anchor", "$dynamicAnchor", "$defs", "definitions", "$comment", "title", "description",
	"default", "example", "examples", "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType",
	"contentSchema", "$vocabulary",
}

func isAnnotation(keyword string) bool {
	return slices.Contains(annotations, keyword) || strings.HasPrefix(keyword, "x-")
}

// refused are keywords that no grammar can hold, with what to do instead.
var refused = map[string]string{
	"multipleOf":        "a grammar cannot count in steps; use type integer, minimum and maximum, or enum",
	"not":               "a grammar cannot exclude; say what is allowed",
	"if":                "use anyOf with a schema for each case",
	"then":              "use anyOf with a schema for each case",
	"else":              "use anyOf with a schema for each case",
	"dependentRequired": "use anyOf with a schema for each case",
	"dependentSchemas":  "use anyOf with a schema for each case",
	"dependencies":      "use anyOf with a schema for each case",
	"contains":          "a grammar cannot look for an item; use prefixItems",
	"minContains":       "a grammar cannot look for an item; use prefixItems",
	"maxContains":       "a grammar cannot look for an item; use prefixItems",
	"$dynamicRef":       "use $ref",
	"$recursiveRef":     "use $ref",
	"additionalItems":   "in draft 2020-12 it is items, beside prefixItems",
}

var typeNames = map[string]kind{
	"null": null, "boolean": boolean, "object": objects, "array": arrays, "string": texts, "number": numbers, "integer": numbers,
}

// node parses the schema v at a pointer.
func (d *document) node(v any, at, base string) *node {
	if n := d.nodes[at]; n != nil {
		return n
	}
	n := d.c.newNode(at, base)
	d.nodes[at] = n
	d.c.tick(1)
	switch v := v.(type) {
	case bool:
		n.never, n.free = !v, v
		return n
	case *object:
		n.resource = d.base(at)
		n.free = !slices.ContainsFunc(v.keys, func(k string) bool { return !isAnnotation(k) })
		if reference, ok := v.values["$ref"].(string); ok && !slices.ContainsFunc(v.keys, func(k string) bool { return k != "$ref" && !isAnnotation(k) }) {
			// It is what it refers to; one that refers to itself says so later.
			value, where := d.find(reference, n.resource, pointer(at, "$ref"))
			if target := d.node(value, where, d.base(where)); target != n {
				d.nodes[at] = target
				return target
			}
			n.all = []*node{n}
			return n
		}
		for _, keyword := range v.keys {
			d.keyword(n, v, keyword, pointer(at, keyword))
		}
		d.unevaluated(n, v)
	default:
		fail(at, "", "a schema is an object, true or false, not %s", encode(v))
	}
	return n
}

func (c *converter) newNode(at, base string) *node {
	c.nodes++
	return &node{id: c.nodes, pointer: at, resource: base, kinds: allKinds, minLength: -1, maxLength: -1, minProps: -1, maxProps: -1, minItems: -1, maxItems: -1}
}

// keyword takes one keyword of the schema o into n.
func (d *document) keyword(n *node, o *object, keyword, at string) {
	v := o.values[keyword]
	schema := func() *node { return d.node(v, at, n.resource) }
	schemas := func(least int) (list []*node) {
		values, ok := v.([]any)
		if !ok || len(values) < least {
			fail(at, keyword, "want an array of schemas")
		}
		for i, x := range values {
			list = append(list, d.node(x, pointer(at, strconv.Itoa(i)), n.resource))
		}
		return list
	}
	count := func() int {
		if number, ok := v.(json.Number); ok {
			if r := rational(number, at, keyword); r.IsInt() && r.Sign() >= 0 {
				if i := r.Num(); i.IsInt64() && i.Int64() < 1<<31 {
					return int(i.Int64())
				}
				return 1 << 31
			}
		}
		fail(at, keyword, "want a whole number from 0")
		return 0
	}
	limit := func(beside bool) bound {
		number, ok := v.(json.Number)
		if !ok {
			fail(at, keyword, "want a number")
		}
		return bound{rational(number, at, keyword), beside}
	}
	text := func() string {
		s, ok := v.(string)
		if !ok {
			fail(at, keyword, "want a string")
		}
		return s
	}
	switch keyword {
	case "type":
		d.types(n, o, v, at)
	case "nullable":
		if _, ok := v.(bool); !ok {
			fail(at, keyword, "want true or false")
		}
		if _, ok := o.values["type"]; !ok && v == true {
			fail(at, keyword, "it stands beside no type; use anyOf with null")
		}
	case "enum":
		list, ok := v.([]any)
		if !ok {
			fail(at, keyword, "want an array")
		}
		n.lists = append(n.lists, d.c.newValues(list))
	case "const":
		n.lists = append(n.lists, d.c.newValues([]any{v}))
	case "minimum":
		n.low = append(n.low, limit(false))
	case "exclusiveMinimum":
		n.low = append(n.low, limit(true))
	case "maximum":
		n.high = append(n.high, limit(false))
	case "exclusiveMaximum":
		n.high = append(n.high, limit(true))
	case "minLength":
		n.minLength = count()
	case "maxLength":
		n.maxLength = count()
	case "pattern":
		n.texts = append(n.texts, d.c.pattern(text(), at, keyword))
	case "format":
		d.format(n, text(), at)
	case "properties":
		n.properties = d.schemaMap(v, at, keyword, n)
	case "patternProperties":
		for _, p := range d.schemaMap(v, at, keyword, n) {
			n.patterns = append(n.patterns, patterned{d.c.pattern(p.name, pointer(at, p.name), keyword), p.is})
		}
	case "additionalProperties":
		n.additional = schema()
	case "propertyNames":
		n.names = schema()
	case "required":
		list, ok := v.([]any)
		if !ok {
			fail(at, keyword, "want an array of names")
		}
		for _, x := range list {
			name, ok := x.(string)
			if !ok {
				fail(at, keyword, "want an array of names")
			}
			if !slices.Contains(n.required, name) {
				n.required = append(n.required, name)
			}
			d.c.tick(len(n.required))
		}
	case "minProperties":
		n.minProps = count()
	case "maxProperties":
		n.maxProps = count()
	case "prefixItems":
		n.prefix = schemas(1)
	case "items":
		if _, tuple := v.([]any); tuple {
			fail(at, keyword, "in draft 2020-12 an array of schemas is called prefixItems")
		}
		n.items = schema()
	case "minItems":
		n.minItems = count()
	case "maxItems":
		n.maxItems = count()
	case "uniqueItems":
		switch most, _ := o.values["maxItems"].(json.Number); {
		case v == false, v == true && (most == "0" || most == "1"):
		case v == true:
			fail(at, keyword, "a grammar cannot compare items; leave it out, or use maxItems 1")
		default:
			fail(at, keyword, "want true or false")
		}
	case "allOf":
		n.all = append(n.all, schemas(1)...)
	case "anyOf":
		n.anyOf = schemas(1)
	case "oneOf":
		n.oneOf = schemas(1)
	case "$ref":
		target, where := d.find(text(), n.resource, at)
		n.all = append(n.all, d.node(target, where, d.base(where)))
	case "unevaluatedProperties", "unevaluatedItems": // behind the others
	default:
		if hint, ok := refused[keyword]; ok {
			fail(at, keyword, "%s", hint)
		}
		if !isAnnotation(keyword) {
			fail(at, keyword, "not a keyword of draft 2020-12 that is known here")
		}
	}
}

func (d *document) unevaluated(n *node, o *object) {
	if v, ok := o.values["unevaluatedProperties"]; ok {
		n.unevaluatedProps = d.node(v, pointer(n.pointer, "unevaluatedProperties"), n.resource)
	}
	if v, ok := o.values["unevaluatedItems"]; ok {
		n.unevaluatedItems = d.node(v, pointer(n.pointer, "unevaluatedItems"), n.resource)
	}
}

func (d *document) types(n *node, o *object, v any, at string) {
	names, ok := v.([]any)
	if !ok {
		names = []any{v}
	}
	n.kinds = 0
	whole, real := false, false
	for _, x := range names {
		name, _ := x.(string)
		k, ok := typeNames[name]
		if !ok {
			fail(at, "type", "%s is no type", encode(x))
		}
		n.kinds |= k
		whole, real = whole || name == "integer", real || name == "number"
	}
	n.integer = whole && !real
	if o.values["nullable"] == true {
		n.kinds |= null
	}
}

// schemaMap parses an object of schemas.
func (d *document) schemaMap(v any, at, keyword string, n *node) (list []property) {
	o, ok := v.(*object)
	if !ok {
		fail(at, keyword, "want an object of schemas")
	}
	for _, name := range o.keys {
		list = append(list, property{name, d.node(o.values[name], pointer(at, name), n.resource)})
	}
	return list
}
