/*
 * Where the layers of a model add to its residual stream; a part of layerskip.c, which includes it.
 *
 * The stream begins at the embeddings. Each half of a layer adds one thing to it, its *addend*:
 *
 *     cut = x   + attention(norm(x))         attention or a recurrent mixer
 *     out = cut + feed_forward(norm(cut))    feed-forward or experts; x + feed_forward(norm(x)) in parallel blocks
 *
 * Names and positions of nodes differ between architectures, and additions do not:
 *
 *   stream   A node carries the stream where it hands it on, each element by itself (scaled, normed, a
 *            choice of rows), or is an ADD with an operand that carries it. What no layer's weights were
 *            used for carries it too: that is where it begins. The stream is what the last such node leads
 *            back to. Were weights of a layer used behind that, it would not end in the logits.
 *   addend   The operand of an ADD of the stream that does not carry it.
 *   half     The weights say whose an addend is: those of the file's blk.N.* that it was computed with
 *            since the stream, of the highest N. Norms are not asked; each half has other weights too.
 *   layer    N, but for models that run their blocks more than once: each run has a KV cache of its own,
 *            and its number is the layer's.
 *
 * What an addend of several halves is made of is sought only where a mask wants one of them: an addend is
 * itself a tree of additions. What adds to the stream and belongs to neither half (an embedding for each
 * layer, say) is no addend that could be skipped.
 */

/* Which halves of a layer; the first two as in a mask. */
enum { ATTENTION = 1, FEED_FORWARD = 2, WHOLE = 3, UNKNOWN_PART = 4 };

/* Caches of a layer, by the letter in their name: keys, values, what a recurrent mixer keeps of the last tokens, its state. */
static const char cache_letters[] = "kvrs";
enum { CACHE_KEYS, CACHE_VALUES, CACHE_OTHER = sizeof cache_letters - 1, CACHE_KINDS };

/* Operations by ggml's numbers; filled by layerskip_fits. */
static struct {
    int32_t add, mul, norm, rms_norm, scale, cont, reshape, view, permute, transpose, get_rows, mul_mat, mul_mat_id, flash_attn, rope, soft_max, set_rows, cpy, unary, glu, sqr;
} op;

/* A node of the graph, and what is known of it. */
struct node {
    struct ggml_tensor *t;       /* llama.cpp's */
    struct ggml_tensor *instead; /* what to read for it; NULL = itself */
    int32_t flags;               /* as llama.cpp set them */
    int16_t block;               /* N of the weights blk.N.* that it was computed with since the stream, -1 = none */
    int16_t layer;               /* an ADD: whose addend it adds, -1 = nobody's */
    int16_t cache;               /* layer whose cache it reads or writes itself, -1 = none */
    uint8_t kind;                /* of that cache */
    int16_t first_cache, last_cache; /* layers whose KV caches it was computed from since the stream; -1 = none */
    bool more_caches;            /* some between the two */
    uint8_t halves;              /* of block, whose weights these were */
    uint8_t addend;              /* an ADD of the stream: which operand, 0 or 1 */
    uint8_t cut;                 /* an ADD: the operands that are left out, bit 0 and bit 1 */
    uint8_t gated[2];            /* an ADD: the halves that operand 0 or 1 is, if some rows skip them */
    bool touched;                /* a layer's weights or cache were used for it */
    bool carries;                /* see "stream" */
    bool stream;
    bool read;                   /* some node reads it */
    bool left_out;               /* it is an addend, or a part of one, that is left out */
    bool narrow;                 /* it has as many numbers fewer as neurons are left out */
    bool keep;
};

/* What the edit knows of the graph. */
struct graph {
    struct node *nodes;      /* (n,) in order of execution; owned here */
    int n;
    int n_layer;             /* layers that add to the stream, and those before them */
    int first;               /* position of the first ADD with an addend */
    struct ggml_tensor *end; /* the last node that was added; NULL = none was */
    uint8_t has[LAYERSKIP_MAX_LAYERS]; /* the halves of each layer */
    uint8_t written[LAYERSKIP_MAX_LAYERS][CACHE_KINDS]; /* the halves whose weights were used for what is written to its caches */
};

/*
 * Bits of ggml's own flags. Above them a node has its position + 1, so that who meets it as a source
 * finds it at once; put_flags_back takes that away again.
 */
enum { FLAG_BITS = 8 };

/* Position of a node, or of the node that a gate stands for; -1 = a weight, an input, a cache. */
static int position(const struct ggml_tensor *t) { return t != NULL ? (t->flags >> FLAG_BITS) - 1 : -1; }

static bool is_input(const struct ggml_tensor *t) { return position(t) < 0 && t->flags & GGML_FLAG_INPUT; }

static bool is_weight(const struct ggml_tensor *t) { return t != NULL && position(t) < 0 && !(t->flags & GGML_FLAG_INPUT); }

static bool same_shape(const struct ggml_tensor *a, const struct ggml_tensor *b) {
    return a->type == b->type && memcmp(a->ne, b->ne, sizeof a->ne) == 0;
}

/* Reads a number off text, or gives -1. */
static int read_number(const char **text) {
    int n = -1;
    for (; **text >= '0' && **text <= '9' && n < LAYERSKIP_MAX_LAYERS; (*text)++) {
        n = (n < 0 ? 0 : 10 * n) + (**text - '0');
    }
    return n < LAYERSKIP_MAX_LAYERS ? n : -1;
}

static bool begins(const char *name, const char *with) { return strncmp(name, with, strlen(with)) == 0; }

/* Which halves a weight belongs to, by what is behind "blk.N." in its name. */
static int halves_of_weight(const char *name) {
    if (strstr(name, "norm") != NULL) {
        return 0;
    }
    if (begins(name, "ffn_") || begins(name, "channel_mix_") || begins(name, "exp_probs_")) {
        return FEED_FORWARD;
    }
    if (begins(name, "attn_") || begins(name, "ssm_") || begins(name, "time_mix_") || begins(name, "shortconv.") ||
        begins(name, "indexer.")) {
        return ATTENTION;
    }
    /* An embedding for each layer, and what scales the stream. */
    return begins(name, "inp_gate.") || begins(name, "proj.") || begins(name, "layer_output_scale.") ? 0 : UNKNOWN_PART;
}

/* Tells which layer's cache t is or views ("cache_k_l7"). False: none's. */
static bool is_cache(const struct ggml_tensor *t, int *layer, int *kind) {
    const char *name = t->view_src != NULL ? t->view_src->name : t->name;
    if (!begins(name, "cache_") || name[6] == '\0' || name[7] != '_' || name[8] != 'l') {
        return false;
    }
    const char *letter = strchr(cache_letters, name[6]), *number = name + 9;
    *kind = letter != NULL ? (int)(letter - cache_letters) : CACHE_OTHER;
    *layer = read_number(&number);
    return *layer >= 0;
}

static void use_block(struct node *n, int block, int halves) {
    if (block > n->block) {
        n->block = (int16_t)block;
        n->halves = (uint8_t)halves;
    } else if (block == n->block) {
        n->halves |= (uint8_t)halves;
    }
}

static void use_cache(struct node *n, int layer) {
    if (n->first_cache < 0) {
        n->first_cache = n->last_cache = (int16_t)layer;
    } else if (layer < n->first_cache) {
        n->more_caches |= n->first_cache < n->last_cache;
        n->first_cache = (int16_t)layer;
    } else if (layer > n->last_cache) {
        n->more_caches |= n->first_cache < n->last_cache;
        n->last_cache = (int16_t)layer;
    } else {
        n->more_caches |= layer > n->first_cache && layer < n->last_cache;
    }
}

/* Adds to n what the use of a weight, an input or a cache tells. */
static void use_leaf(struct node *n, const struct ggml_tensor *leaf) {
    const char *name = leaf->name;
    int layer, kind;
    if (begins(name, "blk.")) {
        n->touched = true;
        name += 4;
        const int block = read_number(&name);
        use_block(n, block, *name == '.' ? halves_of_weight(name + 1) : UNKNOWN_PART);
    } else if (begins(name, "cache_")) {
        n->touched = true;
        if (is_cache(leaf, &layer, &kind)) {
            n->cache = (int16_t)layer;
            n->kind = (uint8_t)kind;
            if (kind == CACHE_KEYS || kind == CACHE_VALUES) {
                use_cache(n, layer);
            }
        }
    }
}

/* Adds to n what is known of a node that it reads. */
static void use_node(struct node *n, const struct node *from) {
    use_block(n, from->block, from->halves);
    if (from->first_cache >= 0) {
        use_cache(n, from->first_cache);
        use_cache(n, from->last_cache);
        n->more_caches |= from->more_caches;
    }
}

static bool carries(const struct graph *g, const struct ggml_tensor *t) {
    const int at = position(t);
    return at >= 0 ? g->nodes[at].carries : is_input(t);
}

static bool is_norm(const struct ggml_tensor *t) { return t->op == op.norm || t->op == op.rms_norm; }

static bool is_view_op(const struct ggml_tensor *t) {
    return t->op == op.reshape || t->op == op.view || t->op == op.permute || t->op == op.transpose;
}

/* True if t hands its first source on, each element by itself or normed with its row. */
static bool hands_on(const struct ggml_tensor *t) {
    return t->op == op.reshape || t->op == op.cont || t->op == op.scale || is_norm(t) ||
           (t->op == op.get_rows && !is_weight(t->src[0])) || ((t->op == op.mul || t->op == op.add) && is_weight(t->src[1]));
}

/* Looks at each node: its position, what it reads, whether it carries the stream. */
static void survey(struct ggml_cgraph *cgraph, struct graph *g) {
    for (int i = 0; i < g->n; i++) {
        struct node *n = &g->nodes[i];
        struct ggml_tensor *t = real.node(cgraph, i);
        *n = (struct node){.t = t, .flags = t->flags, .block = -1, .layer = -1, .cache = -1, .first_cache = -1, .last_cache = -1};
        for (int s = 0; s < GGML_SRC; s++) {
            const struct ggml_tensor *src = t->src[s];
            const int at = position(src);
            if (at >= 0) {
                g->nodes[at].read = true;
                n->touched |= g->nodes[at].touched;
            } else if (src != NULL) {
                use_leaf(n, src);
            }
        }
        n->carries = !n->touched || (hands_on(t) ? carries(g, t->src[0])
                                                 : t->op == op.add && (carries(g, t->src[0]) || carries(g, t->src[1])));
        t->flags |= (i + 1) << FLAG_BITS;
    }
}

static void put_flags_back(struct graph *g) {
    for (int i = 0; i < g->n; i++) {
        struct node *n = &g->nodes[i];
        n->t->flags = n->flags;
        if (n->instead != NULL) { /* a gate has its node's position */
            n->instead->flags &= (1 << FLAG_BITS) - 1;
        }
    }
}

/* Marks the stream, back from its last node. False: it does not lead through the layers to the logits. */
static bool mark_stream(struct graph *g) {
    int last = g->n - 1;
    while (last >= 0 && !(g->nodes[last].carries && g->nodes[last].touched)) {
        if (g->nodes[last].block >= 0) {
            return false;
        }
        last--;
    }
    if (last < 0) {
        return false;
    }
    g->nodes[last].stream = true;
    for (int i = last; i >= 0; i--) {
        struct node *n = &g->nodes[i];
        for (int s = 0; n->stream && n->touched && s < 2; s++) {
            const int at = position(n->t->src[s]);
            if (at >= 0 && g->nodes[at].carries && (s == 0 || n->t->op == op.add)) {
                g->nodes[at].stream = true;
            }
        }
    }
    return true;
}

/* Tells which layer's addend the ADD of the stream at this position adds, after all that stand before it. */
static bool place_addend(struct graph *g, int i, int *shift) {
    struct node *n = &g->nodes[i];
    const bool second = carries(g, n->t->src[0]);
    if (second && carries(g, n->t->src[1])) {
        return true; /* two streams meet */
    }
    const int at = position(n->t->src[second]);
    if (at < 0 || g->nodes[at].block < 0) {
        return true; /* no layer's */
    }
    const struct node *addend = &g->nodes[at];
    n->addend = second;
    if (addend->halves & ATTENTION && addend->first_cache > addend->block + *shift) {
        *shift = addend->first_cache - addend->block; /* its block runs again */
    }
    n->layer = (int16_t)(addend->block + *shift);
    if (n->layer < g->n_layer - 1 || n->layer >= LAYERSKIP_MAX_LAYERS) {
        return refuse("layer %d adds to the residual stream behind layer %d, so masks do not fit this model", n->layer, g->n_layer - 1);
    }
    if (g->n_layer == 0) {
        g->first = i;
    }
    g->n_layer = n->layer + 1;
    g->has[n->layer] |= addend->halves;
    return true;
}

/* Finds where the layers add to the stream. False, and perhaps refused, where they do not. */
static bool find_layers(struct graph *g) {
    if (!mark_stream(g)) {
        return false;
    }
    int shift = 0;
    for (int i = 0; i < g->n; i++) {
        struct node *n = &g->nodes[i];
        for (int s = 0; s < GGML_SRC && n->touched; s++) {
            const int at = position(n->t->src[s]);
            if (at >= 0 && !g->nodes[at].stream) {
                use_node(n, &g->nodes[at]);
            }
        }
        int layer, kind;
        if (!n->read && is_cache(n->t, &layer, &kind)) {
            n->cache = (int16_t)layer;
            n->kind = (uint8_t)kind;
            g->written[layer][kind] |= n->halves & WHOLE;
        }
        if (n->stream && n->t->op == op.add && !place_addend(g, i, &shift)) {
            return false;
        }
    }
    return g->n_layer > 0;
}

/* The stream in front of an ADD that adds an addend, with all of the batch's rows: behind the last layer's
 * attention llama.cpp chooses those whose outputs are wanted. */
static struct ggml_tensor *stream_before(const struct graph *g, int i) {
    const struct node *n = &g->nodes[i];
    struct ggml_tensor *x = n->t->src[1 - n->addend];
    while (x->op == op.get_rows && !is_weight(x->src[0])) {
        x = x->src[0];
    }
    return x;
}
