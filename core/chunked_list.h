// A list whose copies share what they have in common: copying takes one pointer for every 256 elements, and a
// change makes a chunk of its own first if others have it too. For documents of many members, of which every
// commit is a copy that differs in one place.
//
//   ChunkedList<ServerMember> now = before;      // no member is copied
//   now.Mutable(7).address = "unix:/...";        // 256 are
//
// Reading never changes anything, so copies may be read, made and dropped in several threads; one list is
// thread-compatible.
#ifndef SHERD_CORE_CHUNKED_LIST_H_
#define SHERD_CORE_CHUNKED_LIST_H_

#include <atomic>
#include <cstddef>
#include <initializer_list>
#include <iterator>
#include <utility>
#include <vector>

namespace sherd {

template <typename T>
class ChunkedList {
 public:
  static constexpr size_t kChunk = 256;

  class const_iterator {
   public:
    using iterator_category = std::forward_iterator_tag;
    using value_type = T;
    using difference_type = std::ptrdiff_t;
    using pointer = const T*;
    using reference = const T&;
    const_iterator() = default;
    const_iterator(const ChunkedList* list, size_t at) : list_(list), at_(at) {}
    const T& operator*() const { return (*list_)[at_]; }
    const T* operator->() const { return &(*list_)[at_]; }
    const_iterator& operator++() { return ++at_, *this; }
    const_iterator operator++(int) { return {list_, at_++}; }
    friend bool operator==(const const_iterator& a, const const_iterator& b) { return a.at_ == b.at_; }
    friend bool operator!=(const const_iterator& a, const const_iterator& b) { return a.at_ != b.at_; }

   private:
    const ChunkedList* list_ = nullptr;
    size_t at_ = 0;
  };

  ChunkedList() = default;
  ChunkedList(std::initializer_list<T> items) {
    for (const T& item : items) push_back(item);
  }

  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  // REQUIRES: i < size(), here and below.
  const T& operator[](size_t i) const { return (*chunks_[i / kChunk])[i % kChunk]; }
  const T& back() const { return (*this)[size_ - 1]; }
  const_iterator begin() const { return {this, 0}; }
  const_iterator end() const { return {this, size_}; }

  // Valid until the list changes or is copied.
  T& Mutable(size_t i) { return Own(i / kChunk)[i % kChunk]; }
  void push_back(T value) {
    if (size_ % kChunk == 0) chunks_.emplace_back();
    Own(size_ / kChunk).push_back(std::move(value));
    ++size_;
  }
  void pop_back() {
    --size_;
    if (size_ % kChunk == 0) {
      chunks_.pop_back();
    } else {
      Own(size_ / kChunk).pop_back();
    }
  }

 private:
  // Shared by lists, counted. Whoever sees the count at 1 sees all that the others did before they let go.
  class Chunk {
   public:
    Chunk() : shared_(new Shared) {}
    explicit Chunk(const std::vector<T>& items) : shared_(new Shared) {
      shared_->items.reserve(kChunk);
      shared_->items.assign(items.begin(), items.end());
    }
    Chunk(const Chunk& other) : shared_(other.shared_) {
      shared_->owners.fetch_add(1, std::memory_order_relaxed);
    }
    Chunk(Chunk&& other) noexcept : shared_(std::exchange(other.shared_, nullptr)) {}
    Chunk& operator=(Chunk other) noexcept {
      std::swap(shared_, other.shared_);
      return *this;
    }
    ~Chunk() {
      if (shared_ != nullptr && shared_->owners.fetch_sub(1, std::memory_order_acq_rel) == 1) delete shared_;
    }
    bool unshared() const { return shared_->owners.load(std::memory_order_acquire) == 1; }
    std::vector<T>& items() { return shared_->items; }
    const std::vector<T>& operator*() const { return shared_->items; }

   private:
    struct Shared {
      std::atomic<size_t> owners{1};
      std::vector<T> items;
    };
    Shared* shared_;
  };

  std::vector<T>& Own(size_t chunk) {
    if (!chunks_[chunk].unshared()) chunks_[chunk] = Chunk(*chunks_[chunk]);
    return chunks_[chunk].items();
  }

  std::vector<Chunk> chunks_;  // all but the last are full
  size_t size_ = 0;
};

}  // namespace sherd

#endif  // SHERD_CORE_CHUNKED_LIST_H_
