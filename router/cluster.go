package router

import (
	"math"
	"math/rand/v2"
)

// mostRounds bounds k-means; a few dozen rounds settle it on real data.
const mostRounds = 100

// KMeans groups the vectors x, (n, dim), into k clusters by squared distance,
// so that prompts without a task get one. assign is (n,), values 0 to k-1;
// centroids is (k, dim). It starts from k-means++ (Arthur, Vassilvitskii, 2007)
// and is deterministic for a seed. With fewer distinct vectors than k, clusters
// stay empty: their centroids repeat a vector of another. k under 1 counts as
// 1; no vectors give nothing.
func KMeans(x [][]float32, k int, seed uint64) (assign []int, centroids [][]float32) {
	if len(x) == 0 {
		return nil, nil
	}
	k = max(k, 1)
	random := rand.New(rand.NewPCG(seed, uint64(k)))
	centroids = seedCentroids(x, k, random)
	assign = make([]int, len(x))
	distance := make([]float64, len(x)) // to the own centroid
	for range mostRounds {
		changed := false
		for i, v := range x {
			best, at := math.Inf(1), 0
			for c, centroid := range centroids {
				if d := squaredDistance(v, centroid); d < best {
					best, at = d, c
				}
			}
			changed = changed || assign[i] != at
			assign[i], distance[i] = at, best
		}
		moveCentroids(x, assign, distance, centroids)
		if !changed {
			break
		}
	}
	return assign, centroids
}

// seedCentroids draws the first at random and each next with a chance that
// grows with the squared distance from those that are there.
func seedCentroids(x [][]float32, k int, random *rand.Rand) [][]float32 {
	nearest := make([]float64, len(x))
	for i := range nearest {
		nearest[i] = math.Inf(1)
	}
	var centroids [][]float32
	next := random.IntN(len(x))
	for {
		centroids = append(centroids, append([]float32(nil), x[next]...))
		if len(centroids) == k {
			return centroids
		}
		var sum float64
		for i, v := range x {
			nearest[i] = min(nearest[i], squaredDistance(v, x[next]))
			sum += nearest[i]
		}
		target := random.Float64() * sum
		next = len(x) - 1
		for i, d := range nearest {
			if target -= d; target < 0 {
				next = i
				break
			}
		}
	}
}

// moveCentroids puts each centroid into the middle of its vectors. An empty
// cluster takes the vector that lies farthest from its centroid.
func moveCentroids(x [][]float32, assign []int, distance []float64, centroids [][]float32) {
	dim := len(x[0])
	sums := make([][]float64, len(centroids))
	for c := range sums {
		sums[c] = make([]float64, dim)
	}
	count := make([]int, len(centroids))
	for i, v := range x {
		count[assign[i]]++
		sum := sums[assign[i]]
		for j, f := range v {
			sum[j] += float64(f)
		}
	}
	for c := range centroids {
		if count[c] == 0 {
			far := 0
			for i, d := range distance {
				if d > distance[far] {
					far = i
				}
			}
			copy(centroids[c], x[far])
			distance[far] = 0 // the next empty cluster takes another
			continue
		}
		for j, v := range sums[c] {
			centroids[c][j] = float32(v / float64(count[c]))
		}
	}
}

func squaredDistance(a, b []float32) float64 {
	var sum float32
	for i, v := range a {
		d := v - b[i]
		sum += d * d
	}
	return float64(sum)
}
