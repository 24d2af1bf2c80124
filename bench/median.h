// The middle of some figures; of an even number the upper of the two. 0 of none.
#ifndef SHERD_BENCH_MEDIAN_H_
#define SHERD_BENCH_MEDIAN_H_

#include <algorithm>
#include <vector>

namespace sherd::bench {

inline double Median(std::vector<double> v) {
  if (v.empty()) return 0;
  std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
  return v[v.size() / 2];
}

}  // namespace sherd::bench

#endif  // SHERD_BENCH_MEDIAN_H_
