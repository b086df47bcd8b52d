// Package neurons says which neurons of a model's feed-forwards an answer needs. Most of a
// model's bytes are feed-forward weights, and a prompt's own pass through the whole model shows
// which neurons are active in it (GRIFFIN, Dong et al., arXiv 2404.01365).
//
// A neuron's score is the mean, over the tokens seen, of its squared activation as a share
// of its layer's; that of built-in prompts ([Layer.Static]) counts as of a few tokens more. Neurons are
// chosen in blocks of [llama.NeuronBlock], the blocks of most quantised types, in an order of the model's own: sorted
// by static score, neurons of a block are wanted together. The columns of down are kept in this order
// beside what is learnt, in the user's cache folder. Only shares of activity are kept, never text.
package neurons
