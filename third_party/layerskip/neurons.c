/*
 * Feed-forwards without some of their neurons; a part of layerskip.c, which includes it.
 *
 * A neuron is a row of a feed-forward's gate and up, with its column of down:
 *
 *     down * (act(gate * x) . (up * x))     (n_ff,) numbers between the two products
 *
 * Whoever leaves some out makes smaller matrices of those that stay, in memory of its own, and lists which
 * weight of the model each stands in for. The products of the graph read them instead; what lies between is as many
 * numbers narrower, and so are biases. Nothing else is changed: the graph is then that of a model whose file has
 * the smaller matrices. What cannot be made narrower without another meaning (a norm over all neurons, an
 * adapter) is refused.
 *
 * The activations between the products can be watched on their way: a step behind each down reads them.
 */

/* What stands in for a source of a node; NULL = nothing does. */
static const struct layerskip_swap *find_swap(const struct layerskip_neurons *n, const struct ggml_tensor *weight) {
    if (weight == NULL || position(weight) >= 0 || !begins(weight->name, "blk.")) {
        return NULL;
    }
    for (int i = 0; i < n->n; i++) {
        if (n->swaps[i].whole == weight) {
            return &n->swaps[i];
        }
    }
    return NULL;
}

static bool refuse_neurons(const struct ggml_tensor *t, const char *why) {
    job.refused = true;
    snprintf(job.report->reason, sizeof job.report->reason, "no neurons can be left out of %.40s: %s", t->name, why);
    return false;
}

/* True if every row of t lies behind the one before without a gap. */
static bool is_contiguous(const struct ggml_tensor *t) {
    for (int d = 1; d < GGML_DIMS; d++) {
        if (t->nb[d] != t->nb[d - 1] * (size_t)t->ne[d - 1]) {
            return false;
        }
    }
    return true;
}

static bool is_narrow(const struct graph *g, const struct ggml_tensor *t) {
    const int at = position(t);
    return at >= 0 && g->nodes[at].narrow;
}

/* A node that reads narrower numbers becomes narrower itself. */
static bool follow_narrow(struct graph *g, int i, const struct layerskip_neurons *neurons) {
    struct ggml_tensor *t = g->nodes[i].t;
    const bool pairs = t->op == op.add || t->op == op.mul, halves = t->op == op.glu && t->src[1] == NULL;
    if (!pairs && t->op != op.unary && t->op != op.glu && t->op != op.scale && t->op != op.sqr && t->op != op.cont) {
        return refuse_neurons(t, "the feed-forward does more between its products than act on each neuron alone");
    }
    if (!is_contiguous(t)) {
        return refuse_neurons(t, "its numbers do not lie side by side");
    }
    const int64_t from = t->src[0]->ne[0];
    if (!is_narrow(g, t->src[0])) {
        return refuse_neurons(t, "not all that it reads has these neurons");
    }
    struct ggml_tensor *other = t->op == op.add || t->op == op.mul || t->op == op.glu ? t->src[1] : NULL;
    if (other != NULL && !is_narrow(g, other)) {
        const struct layerskip_swap *swap = find_swap(neurons, other);
        if (swap != NULL) {
            t->src[1] = other = swap->kept;
        }
        if (swap == NULL && !(pairs && other->ne[0] == 1)) {
            return refuse_neurons(t, "not all that it reads has these neurons (an adapter, say)");
        }
    }
    if (other != NULL && other->ne[0] != from && other->ne[0] != 1) {
        return refuse_neurons(t, "what it reads has different numbers of neurons");
    }
    narrow(t, halves ? from / 2 : from);
    g->nodes[i].narrow = true;
    return true;
}

/* Puts the smaller matrices in the place of the model's. */
static bool spare_neurons(struct graph *g, const struct layerskip_neurons *neurons) {
    if (neurons == NULL) {
        return refuse("the mask leaves out neurons, but none were chosen", 0, 0);
    }
    for (int i = 0; i < g->n; i++) {
        struct node *n = &g->nodes[i];
        struct ggml_tensor *t = n->t;
        if (!n->keep) {
            continue;
        }
        const bool product = t->op == op.mul_mat;
        const struct layerskip_swap *swap = product ? find_swap(neurons, t->src[0]) : NULL;
        bool reads = false; /* something narrower */
        for (int s = 0; s < GGML_SRC; s++) {
            reads |= is_narrow(g, t->src[s]);
        }
        if (swap != NULL && swap->down) {
            if (!is_narrow(g, t->src[1]) || t->src[1]->ne[0] != swap->kept->ne[0]) {
                return refuse_neurons(t, "what it multiplies is not the product of the smaller matrices");
            }
            t->src[0] = swap->kept;
        } else if (swap != NULL) {
            if (reads || !is_contiguous(t)) {
                return refuse_neurons(t, "it multiplies what has fewer neurons already");
            }
            t->src[0] = swap->kept;
            narrow(t, swap->kept->ne[1]);
            n->narrow = true;
        } else if (reads && !follow_narrow(g, i, neurons)) {
            return false;
        }
    }
    return true;
}

/* The watched weight that a node multiplies activations with, -1 = none. */
static int watched(const struct layerskip_watch *w, const struct ggml_tensor *t) {
    if (t->op != op.mul_mat || !begins(t->src[0]->name, "blk.") || t->src[1]->type != GGML_TYPE_F32 ||
        t->src[1]->ne[2] != 1 || t->src[1]->ne[3] != 1 || !is_contiguous(t->src[1])) {
        return -1;
    }
    for (int k = 0; k < w->n; k++) {
        if (w->weights[k] == t->src[0]) {
            return k;
        }
    }
    return -1;
}

/* Adds the step that reads a product's activations, right behind it: their memory is used again soon. */
static void watch_product(struct ggml_cgraph *cgraph, const struct layerskip_watch *w, struct ggml_tensor *t) {
    enum { ALL_THREADS = -1 };
    const int k = watched(w, t);
    if (k >= 0) {
        real.expand(cgraph, real.custom(w->nodes, t, &t->src[1], 1, w->step, ALL_THREADS, w->data[k]));
    }
}
