#include "proto/copies_text.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace sherd {
namespace {

std::string Hosts(const std::vector<int>& hosts) {
  return absl::StrCat(hosts.size() == 1 ? "host " : "hosts ", absl::StrJoin(hosts, ", "));
}

}  // namespace

std::string Describe(const v1::CompareCopiesResponse::Difference& d) {
  std::string text = absl::StrCat(d.tensor().name(), " ", d.tensor().plane());
  if (d.end() == d.begin() + 1) absl::StrAppend(&text, "[", d.begin(), "]");
  if (d.end() > d.begin() + 1) absl::StrAppend(&text, "[", d.begin(), ":", d.end(), "]");
  std::vector<int> others;
  for (int h : d.hosts()) {
    if (std::find(d.apart().begin(), d.apart().end(), h) == d.apart().end()) others.push_back(h);
  }
  const std::vector<int> apart(d.apart().begin(), d.apart().end());
  if (others.empty())
    return absl::StrCat(text, ": ", Hosts(apart), " differ, and no more than half of them agree");
  return absl::StrCat(text, ": ", Hosts(apart), apart.size() == 1 ? " differs" : " differ", " from ",
                      Hosts(others));
}

}  // namespace sherd
