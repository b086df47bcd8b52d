/*
 * Rows of one batch under different masks; a part of layerskip.c, which includes it.
 *
 * A sublayer that every row skips leaves the graph. A sublayer that only some rows skip stays in it,
 * and a gate behind it gives these rows the stream as it was before:
 *
 *     gate = SET_ROWS(CONT(sum), GET_ROWS(other, ids), ids)      sum = ADD(what the half adds, other)
 *
 * Whatever read the sum reads the gate. Where both halves are operands of one ADD it has two gates, one
 * behind the other. Rows are copied, not multiplied by 1 or 0: a row that skips attention attends to
 * keys and values that its mask never wrote, and 0 * NaN is NaN. All other operations of a layer
 * compute each row from itself and from the caches of its own sequence, so every row comes out as
 * under its mask alone. CONT keeps the copy off the sum's own memory: the scheduler may place the two
 * on different devices.
 *
 * In the last layer the sum has the rows whose outputs are wanted alone, in the order of the batch.
 *
 * The ids are in a buffer of our own and not in the graph's memory, which llama.cpp plans anew for
 * each graph and whose inputs it fills itself. They stay valid as often as llama.cpp uses its last
 * graph again, and a graph is used again only for rows of the same masks and outputs, in the same order.
 *
 * The rows of the graph must be those of the batch. The caller sees to it that llama.cpp cannot put
 * them in another order (one KV buffer for all sequences, each sequence's tokens side by side), and a
 * graph that has fewer rows than the batch is refused.
 */

static int count_halves(int halves) { return (halves & ATTENTION) + (halves >> 1); }

/* The batch's i-th mask. */
static const uint64_t *row_mask(int i) { return job.rows->masks + (size_t)i * LAYERSKIP_WORDS; }

/* The halves of a layer that some rows skip and others do not. */
static int gated_halves(const uint64_t *common, int layer) {
    int halves = 0;
    for (int i = 0; job.rows != NULL && i < job.rows->n_masks; i++) {
        halves |= skipped_halves(row_mask(i), layer);
    }
    return halves & ~skipped_halves(common, layer);
}

/* True if each row skips the whole layer or nothing of it. */
static bool go_together(int layer) {
    for (int i = 0; i < job.rows->n_masks; i++) {
        const int skipped = skipped_halves(row_mask(i), layer);
        if (skipped != 0 && skipped != WHOLE) {
            return false;
        }
    }
    return true;
}

/* True if some row skips the attention of layer `skipped` and keeps some of these halves of `kept`. */
static bool needs_skipped(int skipped, int kept, int halves) {
    for (int i = 0; i < job.rows->n_masks; i++) {
        const uint64_t *mask = row_mask(i);
        if (skipped_halves(mask, skipped) & ATTENTION && !is_written(mask, skipped) && (skipped_halves(mask, kept) & halves) != halves) {
            return true;
        }
    }
    return false;
}

/*
 * Refuses masks under which a kept layer would need the KV cache of a skipped one: it reads that, or
 * something else that comes from it. A gate gives neither the row's own.
 */
static bool check_caches(const struct graph *g) {
    for (int i = g->first; i < g->n; i++) {
        const struct node *n = &g->nodes[i];
        if (!n->stream || n->layer < 0) {
            continue;
        }
        const struct node *addend = &g->nodes[position(n->t->src[n->addend])];
        for (int layer = addend->first_cache; layer >= 0 && layer <= addend->last_cache; layer++) {
            const bool reads = layer == addend->first_cache || layer == addend->last_cache || addend->more_caches;
            if (reads && layer != n->layer && needs_skipped(layer, n->layer, addend->halves & WHOLE)) {
                return refuse("a kept layer reads the KV cache of layer %d, so layer %d cannot be skipped", layer, layer);
            }
        }
    }
    return true;
}

/* Refuses other rows than the batch's, and what would be refused of a row's mask if it were the batch's. */
static bool check_rows(const struct graph *g) {
    const int rows = (int)stream_before(g, g->first)->ne[1];
    if (rows != job.n_rows) {
        return refuse("llama.cpp computes %d of the batch's %d tokens at a time, so they must all have the same mask", rows, job.n_rows);
    }
    for (int i = 0; i < job.rows->n_masks; i++) {
        if (!check_mask(g, row_mask(i))) {
            return false;
        }
    }
    return check_caches(g);
}

/* Makes room for the gates of a graph. */
static bool prepare_gates(struct ggml_cgraph *cgraph, const struct graph *g) {
    struct layerskip_gates *gates = job.gates;
    enum { TENSORS = 4, TENSOR = 512 }; /* of a gate; bytes that one takes in a ggml_context, at most */
    int n = 0;
    for (int i = 0; i < g->n; i++) {
        n += (g->nodes[i].gated[0] != 0) + (g->nodes[i].gated[1] != 0);
    }
    /* ggml ends the process where nodes and leafs outgrow a graph. llama.cpp makes its graphs 8 times as
     * large as the number of weights; other leafs are the caches of keys and values and some 20 inputs. */
    const int size = real.graph_size(cgraph), leafs = size / 8 + 2 * g->n_layer + 32;
    if (g->n + TENSORS * n + leafs > size) {
        return refuse("llama.cpp's graph has no room for %d sublayers that only some rows skip", n, 0);
    }
    if (n > gates->n_room && gates->nodes != NULL) {
        real.free_context(gates->nodes);
        gates->nodes = NULL;
    }
    if (gates->nodes == NULL) {
        gates->nodes = real.init((struct ggml_init_params){.mem_size = ((size_t)n + 1) * TENSORS * TENSOR, .no_alloc = true});
        gates->n_room = n;
    }
    const size_t bytes = ((size_t)n + 1) * (size_t)job.n_rows * sizeof(int32_t); /* the last list may turn out to be known */
    if (bytes > gates->size) {
        if (gates->buffer != NULL) {
            real.buffer_free(gates->buffer);
        }
        gates->buffer = real.buft_alloc_buffer(real.cpu_buffer_type(), bytes);
        gates->size = gates->buffer != NULL ? bytes : 0;
    }
    if (gates->nodes == NULL || gates->buffer == NULL) {
        return refuse("out of memory for the gates of %d sublayers", n, 0);
    }
    real.reset(gates->nodes);
    gates->n_ids = 0;
    gates->used = 0;
    return true;
}

/* The ids of the rows of t that skip all of these halves of the layer, and in *n how many they are; NULL = none, or
 * *n is -1: t has other rows than the batch. */
static struct ggml_tensor *ids_of_rows(const struct ggml_tensor *t, int layer, int halves, int *n) {
    struct layerskip_gates *gates = job.gates;
    int32_t *const ids = (int32_t *)real.buffer_get_base(gates->buffer) + gates->used;
    const bool outputs = t->ne[1] != job.n_rows;
    int row = 0;
    *n = 0;
    for (int i = 0; i < job.n_rows; i++) {
        if (outputs && !job.outputs[i]) {
            continue;
        }
        if ((skipped_halves(row_mask(job.rows->mask_of[i]), layer) & halves) == halves) {
            ids[(*n)++] = row;
        }
        row++;
    }
    if (row != t->ne[1]) {
        *n = -1;
        return NULL;
    }
    for (int i = 0; i < gates->n_ids; i++) {
        struct ggml_tensor *other = gates->ids[i];
        if (other->ne[0] == *n && memcmp(other->data, ids, (size_t)*n * sizeof *ids) == 0) {
            return other;
        }
    }
    if (*n == 0) {
        return NULL;
    }
    struct ggml_tensor *made = real.new_tensor_1d(gates->nodes, GGML_TYPE_I32, *n);
    real.tensor_alloc(gates->buffer, made, ids);
    if (gates->n_ids < 2 * LAYERSKIP_MAX_LAYERS) {
        gates->ids[gates->n_ids++] = made;
    }
    gates->used += *n;
    return made;
}

/* Has the rows that skip these halves of the layer read other where the rest read the ADD at i. */
static bool gate(struct graph *g, int i, struct ggml_tensor *other, int layer, int halves) {
    struct node *n = &g->nodes[i];
    if (!same_shape(other, n->t)) {
        return refuse("layer %d changes the shape of its input, so it cannot be skipped", layer, 0);
    }
    int count;
    struct ggml_tensor *ids = ids_of_rows(n->t, layer, halves, &count);
    if (count < 0 || n->t->type != GGML_TYPE_F32 || n->t->ne[2] != 1 || n->t->ne[3] != 1) {
        return refuse("llama.cpp computes other rows in layer %d than the batch has, so they must all have the same mask", layer, 0);
    }
    if (count > 0) {
        struct ggml_context *ctx = job.gates->nodes;
        struct ggml_tensor *behind = n->instead; /* a gate of the other operand */
        if (behind != NULL) {
            behind->flags &= (1 << FLAG_BITS) - 1;
        } else {
            behind = real.cont(ctx, n->t);
        }
        n->instead = real.set_rows(ctx, behind, real.get_rows(ctx, other, ids), ids);
        n->instead->flags |= (i + 1) << FLAG_BITS;
    }
    return true;
}

#ifndef LAYERSKIP_PRELOAD

static void layerskip_free_local(struct layerskip_local *l);
static void free_attend(struct layerskip_attend *a);

static bool same_rows(const struct layerskip_gates *gates, const struct layerskip_rows *rows, const struct llama_batch *batch) {
    const struct layerskip_rows *built = &gates->built;
    if (rows == NULL) {
        return built->n_masks == 0;
    }
    return built->n_masks == rows->n_masks && gates->n_built == batch->n_tokens &&
           memcmp(built->masks, rows->masks, (size_t)rows->n_masks * LAYERSKIP_WORDS * sizeof *rows->masks) == 0 &&
           memcmp(built->mask_of, rows->mask_of, (size_t)batch->n_tokens * sizeof *rows->mask_of) == 0 &&
           memcmp(gates->outputs, batch->logits, (size_t)batch->n_tokens) == 0;
}

/* Remembers what the next graph is built for. False: no memory, and nothing is remembered. */
static bool remember_rows(struct layerskip_gates *gates, const struct layerskip_rows *rows, const struct llama_batch *batch) {
    gates->built.n_masks = 0;
    if (rows == NULL) {
        return true;
    }
    const size_t masks = (size_t)rows->n_masks * LAYERSKIP_WORDS * sizeof *rows->masks, n = (size_t)batch->n_tokens;
    const size_t bytes = masks + n * (sizeof *rows->mask_of + 1);
    char *memory = realloc(gates->memory, bytes);
    if (memory == NULL) {
        return false;
    }
    gates->memory = memory;
    gates->built = (struct layerskip_rows){
        .masks = memcpy(memory, rows->masks, masks),
        .mask_of = memcpy(memory + masks, rows->mask_of, n * sizeof *rows->mask_of),
        .n_masks = rows->n_masks,
    };
    gates->outputs = memcpy(memory + bytes - n, batch->logits, n);
    gates->n_built = batch->n_tokens;
    return true;
}

void layerskip_free(struct layerskip_state *state) {
    struct layerskip_gates *gates = &state->gates;
    if (gates->nodes != NULL) {
        real.free_context(gates->nodes);
    }
    if (gates->buffer != NULL) {
        real.buffer_free(gates->buffer);
    }
    if (state->plan.nodes != NULL) {
        real.free_context(state->plan.nodes);
    }
    free(gates->memory);
    *gates = (struct layerskip_gates){0};
    state->plan = (struct layerskip_plan){0};
    layerskip_free_local(&state->local);
    free_attend(&state->attend);
}

#endif
