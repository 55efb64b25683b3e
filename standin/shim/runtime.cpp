// Runs a grid on the host: block after block, every CUDA thread of a block a fiber where it has to wait for others, and a plain
// call where it does not. Threads and blocks go in an order that a seed picks.
//
// A thread runs until a barrier or a warp's collective stops it. So without a needed barrier the threads that run first
// read what the others have not written: poison.
#include "cuda.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
unsigned long long shim::epoch = 0;
void* shim::dynamic = nullptr;

namespace {

struct Kernel {
  const char* name;
  shim::Body body;
  int parameters;
  const int* sizes;
  int max_threads;
};
std::vector<Kernel>& kernels() {
  static std::vector<Kernel> all;
  return all;
}

// ---- Fibers

constexpr size_t STACK = 256 << 10, GUARD = 4096;

struct Fiber {
  char* stack = nullptr;  // its lowest page is a guard
#ifdef __x86_64__
  void* at = nullptr;
#else
  ucontext_t at;
#endif
  void* fake = nullptr;  // the address sanitizer's
};

enum State : uint8_t { NEW, READY, AT_BARRIER, IN_COLLECTIVE, ENDED };
struct Thread {
  State state;
  Fiber* fiber;
  unsigned mask;
  shim::Collective what;
  uint64_t value;
  int source;
};

// The one block that runs.
struct Block {
  std::vector<Thread> threads;
  std::vector<unsigned> order;
  unsigned next = 0;     // in `order`: the first thread that has not begun
  unsigned until = 0;    // in `order`: the first that may not begin yet
  unsigned current = 0;  // the thread that runs
  size_t ended = 0;
  std::vector<unsigned> waiting;  // of each warp the lanes that are in a collective
  const Kernel* kernel = nullptr;
  void** parameters = nullptr;
} block;

// The barrier that was taken out, and how often a thread came past it.
const char* removed_file = "";
int removed_line = 0;
unsigned long long removals = 0;

Fiber scheduler;
Fiber* running = nullptr;
std::vector<Fiber*> idle;
std::vector<Fiber*> every;

#ifdef __x86_64__
extern "C" void shim_switch(void** save, void* load);
asm(R"(
.text
.type shim_switch,@function
shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size shim_switch, .-shim_switch
)");
#endif

#ifdef __SANITIZE_ADDRESS__
// The stack of the host's thread, told by the sanitizer when a fiber is entered from it.
const void* host_bottom;
size_t host_size;
#endif

void hop(Fiber& from, Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
  const bool home = &to == &scheduler;
  __sanitizer_start_switch_fiber(&from.fake, home ? host_bottom : to.stack, home ? host_size : STACK);
#endif
#ifdef __x86_64__
  shim_switch(&from.at, to.at);
#else
  swapcontext(&from.at, &to.at);
#endif
#ifdef __SANITIZE_ADDRESS__
  const bool in_fiber = &from != &scheduler;
  __sanitizer_finish_switch_fiber(from.fake, in_fiber ? &host_bottom : nullptr, in_fiber ? &host_size : nullptr);
#endif
}

void set_thread(unsigned thread) {
  block.current = thread;
  threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y};
}

// What a fiber does: it begins threads until one has to wait, and goes on with others once that has ended.
void work() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &host_bottom, &host_size);
#endif
  for (;;) {
    Fiber* const self = running;
    while (block.next < block.until) {
      const unsigned thread = block.order[block.next++];
      set_thread(thread);
      block.threads[thread].fiber = self;
      block.kernel->body(block.parameters);
      block.threads[block.current].state = ENDED;
      ++block.ended;
    }
    idle.push_back(self);
    hop(*self, scheduler);
  }
}

Fiber* new_fiber() {
  auto* fiber = new Fiber;
  fiber->stack = (char*)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (fiber->stack == MAP_FAILED) throw std::bad_alloc();
  mprotect(fiber->stack, GUARD, PROT_NONE);
#ifdef __x86_64__
  void** top = (void**)(fiber->stack + STACK - 64);
  *--top = nullptr;  // the stack as a call leaves it
  *--top = (void*)work;
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber->at = top;
#else
  getcontext(&fiber->at);
  fiber->at.uc_stack = {fiber->stack, 0, STACK};
  makecontext(&fiber->at, work, 0);
#endif
  every.push_back(fiber);
  return fiber;
}

void enter(Fiber* fiber) {
  running = fiber;
  hop(scheduler, *fiber);
}

// The thread that runs stops here until the scheduler finds it ready.
void stop(State why) {
  const unsigned thread = block.current;
  block.threads[thread].state = why;
  hop(*block.threads[thread].fiber, scheduler);
  set_thread(thread);
}

// ---- Order

uint64_t state;
uint64_t random_number() {  // xorshift*, never 0
  state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
  return state * 0x2545F4914F6CDD1Dull;
}
void shuffle(std::vector<unsigned>& order, bool random) {
  for (size_t i = order.size(); random && i > 1; --i) std::swap(order[i - 1], order[random_number() % i]);
}
void count_up(std::vector<unsigned>& order, size_t count) {
  order.resize(count);
  for (size_t i = 0; i < count; ++i) order[i] = (unsigned)i;
}

// Why nothing can go on.
const char* explain(const Kernel& kernel) {
  static char text[256];
  size_t barrier = 0, collective = 0;
  for (const Thread& thread : block.threads) barrier += thread.state == AT_BARRIER, collective += thread.state == IN_COLLECTIVE;
  std::snprintf(text, sizeof text, "kernel %s, block (%u, %u, %u): of %zu threads %zu stand at __syncthreads, %zu in a warp's collective, %zu have returned",
                kernel.name, blockIdx.x, blockIdx.y, blockIdx.z, block.threads.size(), barrier, collective, block.ended);
  // The fibers stand in the middle of a kernel and are not used again.
  idle.clear();
  return text;
}

// Which threads of a block are held back: none, those of one warp, or one. They run only when no other can, so the others come as
// far as barriers let them: without a needed one, past what those held back have still to read. Half of the time it is the first,
// which in most kernels collects what the others leave.
struct HeldBack {
  unsigned unit = 0, which = 0;  // threads `which`·`unit` to (`which` + 1)·`unit`; none where `unit` is 0
  bool holds(unsigned thread) const { return unit && thread / unit == which; }
};
HeldBack hold_back(bool random) {
  if (!random) return {};
  const unsigned unit = (unsigned[]){0, 32, 1}[random_number() % 3], count = (unsigned)block.threads.size();
  if (count <= unit) return {};
  const bool is_first = unit == 0 || random_number() & 1;
  return {unit, is_first ? 0 : (unsigned)(random_number() % ((count + unit - 1) / unit))};
}

// Puts the threads into an order, those that are held back last; gives the number of the others.
unsigned arrange(const HeldBack& held, bool random) {
  shuffle(block.order, random);
  const auto others = [&](unsigned thread) { return !held.holds(thread); };
  return (unsigned)(std::stable_partition(block.order.begin(), block.order.end(), others) - block.order.begin());
}

// Lets every thread that can go on do so until it stops, from `first` to `last` in the order; whether one could.
bool sweep(unsigned first, unsigned last) {
  bool went = false;
  for (unsigned at = first; at < last; ++at) {
    const Thread& thread = block.threads[block.order[at]];
    if (thread.state != READY) continue;
    went = true;
    enter(thread.fiber);
  }
  return went;
}

const char* run_block(const Kernel& kernel, bool random) {
  ++shim::epoch;
  for (Thread& thread : block.threads) thread = {NEW, nullptr, 0, shim::SYNC, 0, 0};
  const unsigned all = (unsigned)block.threads.size();
  block.waiting.assign((all + 31) / 32, 0);
  const HeldBack held = hold_back(random);
  unsigned others = arrange(held, random);
  block.next = 0, block.ended = 0, block.until = others;
  for (;;) {
    while (block.next < block.until) {
      if (idle.empty()) idle.push_back(new_fiber());
      Fiber* const fiber = idle.back();
      idle.pop_back();
      enter(fiber);
    }
    if (block.ended == all) return nullptr;
    if (sweep(0, others)) continue;
    if (block.until < all) {
      block.until = all;
      continue;
    }
    if (sweep(others, all)) continue;
    for (const Thread& thread : block.threads)
      if (thread.state != AT_BARRIER) return explain(kernel);
    for (Thread& thread : block.threads) thread.state = READY;
    others = arrange(held, random);
  }
}

// Memory with a pattern behind it that tells a write past its end.
struct Shared {
  static constexpr size_t FENCE = 256;
  size_t size;
  char* bytes;
  explicit Shared(size_t size) : size(size), bytes((char*)std::aligned_alloc(256, (size + FENCE + 255) & ~(size_t)255)) {
    if (!bytes) throw std::bad_alloc();
    std::memset(bytes + size, 0xA5, FENCE);
  }
  ~Shared() { std::free(bytes); }
  bool whole() const {
    return std::all_of(bytes + size, bytes + size + FENCE, [](char c) { return c == (char)0xA5; });
  }
};

}  // namespace

void shim::add(const char* name, Body body, int parameters, const int* sizes, int max_threads) {
  kernels().push_back({name, body, parameters, sizes, max_threads});
}

int shim::lane() { return (int)(block.current & 31); }

void shim::barrier(const char* file, int line) {
  if (!removed(file, line)) stop(AT_BARRIER);
}

bool shim::removed(const char* file, int line) {
  if (line != removed_line || std::strcmp(file, removed_file)) return false;
  ++removals;
  return true;
}

uint64_t shim::collective(unsigned mask, Collective what, uint64_t value, int source) {
  const unsigned thread = block.current, first = thread & ~31u;
  const unsigned lanes = (unsigned)std::min<size_t>(32, block.threads.size() - first);
  const unsigned present = lanes == 32 ? ~0u : (1u << lanes) - 1;
  Thread* const warp = &block.threads[first];
  Thread& self = warp[thread - first];
  self.mask = mask, self.what = what, self.value = value, self.source = source;
  // A lane outside of the mask that it names waits for ever, as it may on a device.
  const unsigned named = mask & present, own = 1u << (thread - first);
  unsigned& waiting = block.waiting[first / 32];
  unsigned arrived = own;
  // Most arrive before the last.
  if (named & ~(waiting | own)) {
    waiting |= own;
    stop(IN_COLLECTIVE);
    return block.threads[thread].value;
  }
  for (unsigned lane = 0; lane < lanes; ++lane)
    if (warp[lane].state == IN_COLLECTIVE && warp[lane].mask == mask && warp[lane].what == what) arrived |= 1u << lane;
  if (arrived != named) {
    waiting |= own;
    stop(IN_COLLECTIVE);
    return block.threads[thread].value;
  }
  uint64_t before[32], ballot = 0;
  for (unsigned lane = 0; lane < lanes; ++lane) {
    before[lane] = warp[lane].value;
    if (named >> lane & 1) ballot |= (before[lane] & 1) << lane;
  }
  for (unsigned lane = 0; lane < lanes; ++lane) {
    if (!(named >> lane & 1)) continue;
    const int from = warp[lane].source;
    // What a lane that takes no part would give is not defined.
    const bool given = from >= 0 && from < (int)lanes && named >> from & 1;
    warp[lane].value = what == BALLOT ? ballot : what == SYNC ? 0 : given ? before[from] : ~0ull;
    if (&warp[lane] != &self) warp[lane].state = READY;
  }
  waiting &= ~named;
  return self.value;
}

// ---- What the stand-in calls

extern "C" const char shim_source_text[];

extern "C" __attribute__((visibility("default"))) int shim_count() { return (int)kernels().size(); }

extern "C" __attribute__((visibility("default"))) const char* shim_sources() { return shim_source_text; }

extern "C" __attribute__((visibility("default"))) void shim_describe(int index, const char** name, int* parameters,
                                                                    const int** sizes, int* max_threads) {
  const Kernel& kernel = kernels()[index];
  *name = kernel.name, *parameters = kernel.parameters, *sizes = kernel.sizes, *max_threads = kernel.max_threads;
}

// Takes a barrier out: that on this line of this file of kernels/.
extern "C" __attribute__((visibility("default"))) void shim_remove(const char* file, int line) {
  removed_file = file, removed_line = line;
}

// How often a thread came past the barrier that was taken out.
extern "C" __attribute__((visibility("default"))) unsigned long long shim_removals() { return removals; }

// Runs a grid; null, or what the kernel did that no kernel may. One at a time: the caller sees to it.
extern "C" __attribute__((visibility("default"))) const char* shim_launch(int index, const unsigned* grid, const unsigned* threads,
                                                                          size_t shared, void* const* parameters, uint64_t seed) {
  const Kernel& kernel = kernels()[index];
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {threads[0], threads[1], threads[2]};
  block.kernel = &kernel;
  block.parameters = const_cast<void**>(parameters);
  const size_t count = (size_t)threads[0] * threads[1] * threads[2], blocks = (size_t)grid[0] * grid[1] * grid[2];
  block.threads.resize(count);
  count_up(block.order, count);
  state = seed | 1;
  std::vector<unsigned> turns;
  const bool shuffled = seed && blocks <= 1u << 20;
  if (shuffled) {
    count_up(turns, blocks);
    shuffle(turns, true);
  }
  Shared memory(shared);
  shim::dynamic = memory.bytes;
  for (size_t turn = 0; turn < blocks; ++turn) {
    const size_t at = shuffled ? turns[turn] : turn;
    blockIdx = {(unsigned)(at % grid[0]), (unsigned)(at / grid[0] % grid[1]), (unsigned)(at / grid[0] / grid[1])};
    std::memset(memory.bytes, 0xFF, shared);
    if (const char* error = run_block(kernel, seed != 0)) return error;
    if (!memory.whole()) {
      static char text[160];
      std::snprintf(text, sizeof text, "kernel %s writes past its %zu bytes of dynamic shared memory", kernel.name, shared);
      return text;
    }
  }
  return nullptr;
}
