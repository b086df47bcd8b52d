package template

// Statements.
type (
	stmt any

	output struct { // text and expressions
		line int
		x    expr
	}
	ifStmt struct {
		line   int
		cond   expr
		then   []stmt
		orElse []stmt
	}
	forStmt struct {
		line      int
		target    expr
		in        expr
		cond      expr // nil = every item
		recursive bool
		body      []stmt
		orElse    []stmt
	}
	setStmt struct {
		line   int
		target expr
		value  expr
	}
	setBlock struct {
		line   int
		target expr
		filter expr // of the input placeholder; nil = none
		body   []stmt
	}
	macroStmt struct {
		line int
		fn   *macroDef
	}
	callBlock struct {
		line int
		call *call
		fn   *macroDef
	}
	filterBlock struct {
		line   int
		filter expr
		body   []stmt
	}
	withStmt struct {
		line    int
		targets []expr
		values  []expr
		body    []stmt
	}
	scoped struct { // {% generation %}, {% block %}, {% autoescape %}
		line int
		body []stmt
	}
	loopControl struct {
		line int
		stop bool // break; else continue
	}
	refusedStmt struct { // include and its kin, which need files
		line int
		name string
	}
)

// macroDef is a macro, or the body of a call block.
type macroDef struct {
	name     string
	params   []string
	defaults []expr // of the last parameters
	body     []stmt
	// Whether the body uses these names: arguments that have no parameter are
	// only taken then.
	varargs, kwargs, caller bool
}

// Expressions.
type (
	expr any

	constant struct{ v any }
	name     struct {
		line int
		id   string
	}
	attribute struct {
		line int
		x    expr
		id   string
	}
	item struct {
		line  int
		x     expr
		index expr
	}
	sliceOf     struct{ start, stop, step expr } // nil = absent; an item's index
	placeholder struct{}                         // a filter's input
	call        struct {
		line int
		fn   expr
		args arguments
	}
	filter struct {
		line int
		x    expr
		id   string
		args arguments
	}
	test struct {
		line int
		x    expr
		id   string
		args arguments
	}
	unary struct {
		line int
		op   string // - + not
		x    expr
	}
	binary struct {
		line int
		op   string // + - * / // % ** and or
		l, r expr
	}
	compare struct {
		line int
		x    expr
		ops  []string
		with []expr
	}
	concat      struct{ parts []expr }
	conditional struct {
		line            int
		cond, then, alt expr // alt nil = undefined
	}
	sequence struct {
		items []expr
		tuple bool
	}
	mapping struct{ keys, values []expr }
)

// arguments are those of a call, a filter or a test.
type arguments struct {
	list     []expr
	names    []string // of keywords
	values   []expr
	star     expr // *x
	starstar expr // **x
}
