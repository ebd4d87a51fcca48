// Thread blocks as fibers.
//
//   grid      its blocks one after another, on the thread of the system that launches it
//   block     its CUDA threads, each a fiber from its first wait to its last
//   round     every warp: run each ready lane until it waits or ends, then let lanes that met at a
//             warp operation go on, until nobody can; when all warps stand, the barrier opens
//
// A thread that waits switches to the next one itself, and one that ends leaves its stack to the
// next that has not begun. So threads that never wait are calls one after another, and a wait costs
// one switch, whose jumps the processor predicts because neighbours wait at the same place.
//
// What would hang or corrupt on the device ends the program here, with kernel, block and thread:
// barriers that some threads never reach, warp operations that some lanes of the mask miss.
#include "fibers.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

namespace gpu_sim {

Context context;

static std::map<std::string, Registered>& kernels() {
  static std::map<std::string, Registered> all;
  return all;
}

void register_kernel(const char* name, Thunk thunk, u32 n_arg) {
  kernels()[name] = {thunk, n_arg};
}

Registered find_kernel(const std::string& name) {
  const auto found = kernels().find(name);
  return found == kernels().end() ? Registered{nullptr, 0} : found->second;
}

// Saves the callee's registers on the stack, whose pointer goes to `save`, and goes on where
// `load` was saved.
extern "C" void gpu_sim_switch(void** save, void* load);

#if defined(__x86_64__)
asm(R"(.text
.globl gpu_sim_switch
.hidden gpu_sim_switch
.type gpu_sim_switch,@function
gpu_sim_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size gpu_sim_switch,.-gpu_sim_switch)");

static void* first_frame(u8* top, void (*entry)()) {
  void** at = (void**)((uintptr_t)top & ~15ull);
  *--at = nullptr;  // a return address that nobody uses, so that the stack is aligned as in a call
  *--at = (void*)entry;
  for (int i = 0; i < 6; i++) *--at = nullptr;
  return at;
}
#elif defined(__aarch64__)
asm(R"(.text
.globl gpu_sim_switch
.hidden gpu_sim_switch
.type gpu_sim_switch,@function
gpu_sim_switch:
  sub sp,sp,#160
  stp x19,x20,[sp]
  stp x21,x22,[sp,#16]
  stp x23,x24,[sp,#32]
  stp x25,x26,[sp,#48]
  stp x27,x28,[sp,#64]
  stp x29,x30,[sp,#80]
  stp d8,d9,[sp,#96]
  stp d10,d11,[sp,#112]
  stp d12,d13,[sp,#128]
  stp d14,d15,[sp,#144]
  mov x9,sp
  str x9,[x0]
  mov sp,x1
  ldp x19,x20,[sp]
  ldp x21,x22,[sp,#16]
  ldp x23,x24,[sp,#32]
  ldp x25,x26,[sp,#48]
  ldp x27,x28,[sp,#64]
  ldp x29,x30,[sp,#80]
  ldp d8,d9,[sp,#96]
  ldp d10,d11,[sp,#112]
  ldp d12,d13,[sp,#128]
  ldp d14,d15,[sp,#144]
  add sp,sp,#160
  ret
.size gpu_sim_switch,.-gpu_sim_switch)");

static void* first_frame(u8* top, void (*entry)()) {
  u64* at = (u64*)((uintptr_t)top & ~15ull) - 20;
  memset(at, 0, 160);
  at[11] = (u64)entry;
  return at;
}
#else
#error "the simulator knows x86-64 and aarch64"
#endif

// A power of two would bring the tops of all stacks to the same few lines of the caches.
static const size_t STACK_BYTES = (64 << 10) + 13 * 64;
static const size_t N_STACK = 1024;  // threads of a block at most

static u32 place(u32 i, u32 n, Order order) {
  if (order.kind == Order::FORWARD) return i;
  if (order.kind == Order::REVERSE) return n - 1 - i;
  // 7919 is a prime larger than any block, so every place comes once.
  return (u32)((i * 7919ull + order.seed) % n);
}

// The threads of a block and whose turn it is.
class Block {
 public:
  // Readies it for the blocks of a launch.
  void shape(Thunk thunk, void** args, Index dim, Order order) {
    thunk_ = thunk;
    args_ = args;
    order_ = order;
    fibers_.resize(dim.x * dim.y * dim.z);
    warps_.resize((fibers_.size() + 31) / 32);
    for (u32 i = 0; i < fibers_.size(); i++) {
      const Index at = {i % dim.x, i / dim.x % dim.y, i / dim.x / dim.y};
      fibers_[i] = {nullptr, &warps_[i / 32], at, i % 32};
    }
    for (u32 i = 0; i < 32; i++) lanes_[i] = place(i, 32, order);
  }

  void run() {
    for (Fiber& fiber : fibers_) fiber.stack = nullptr;
    for (Warp& warp : warps_) {
      memset(warp.state, READY, sizeof warp.state);
      memset(warp.seq, 0, sizeof warp.seq);
      for (Mail& mail : warp.mails) memset(mail.seq, 0, sizeof mail.seq);
    }
    n_done_ = turn_ = 0;
    enter_warp();
    context.fiber = next();
    gpu_sim_switch(&host_, begin());
  }

  // A thread waits: others run until it may go on.
  void wait(State state) {
    Fiber* me = context.fiber;
    me->warp->state[me->lane] = state;
    Fiber* other = next();
    context.fiber = other;
    if (other == me) return;
    gpu_sim_switch(&me->stack, other->stack ? other->stack : begin());
  }

  // What a stack does from its first frame on.
  void run_threads() {
    u8* const stack = begun_;
    for (;;) {
      thunk_(args_);
      context.fiber->warp->state[context.fiber->lane] = DONE;
      n_done_++;
      Fiber* other = next();
      if (other) context.fiber = other;
      if (other && !other->stack) continue;
      // Nobody goes on here; and nobody begins here before the switch is over.
      stacks_.push_back(stack);
      void* left;
      gpu_sim_switch(&left, other ? other->stack : host_);
    }
  }

 private:
  // The thread whose turn it is; none when all have ended.
  Fiber* next() {
    for (;;) {
      while (lane_ < n_lane_) {
        const u32 lane = n_lane_ == 32 ? lanes_[lane_] : place(lane_, n_lane_, order_);
        lane_++;
        if (warps_[warp_].state[lane] == READY) return &fibers_[32 * warp_ + lane];
      }
      lane_ = 0;
      if (release(warps_[warp_])) continue;
      if (++turn_ == warps_.size()) {
        if (n_done_ == fibers_.size()) return nullptr;
        open_barrier();
        turn_ = 0;
      }
      enter_warp();
    }
  }

  void enter_warp() {
    warp_ = place(turn_, (u32)warps_.size(), order_);
    const u32 rest = (u32)fibers_.size() - 32 * warp_;
    n_lane_ = rest < 32 ? rest : 32;
    lane_ = 0;
  }

  // Lets those lanes go on that stand at the same warp operation as all of their mask.
  bool release(Warp& warp) {
    if (n_lane_ == 32 && meets_whole(warp)) {
      memset(warp.state, READY, sizeof warp.state);
      return true;
    }
    u32 waiting = 0;
    for (u32 lane = 0; lane < n_lane_; lane++) {
      waiting |= (u32)(warp.state[lane] == AT_WARP) << lane;
    }
    const u32 present = n_lane_ == 32 ? ~0u : (1u << n_lane_) - 1;
    bool any = false;
    for (u32 lane = 0; lane < n_lane_; lane++) {
      const u32 mask = warp.mask[lane] & present;
      if (!((waiting >> lane) & 1) || (waiting & mask) != mask) continue;
      for (u32 other = 0; other < n_lane_; other++) {
        if (!((mask >> other) & 1)) continue;
        if (warp.mask[other] != warp.mask[lane] || warp.seq[other] != warp.seq[lane]) {
          context.fiber = &fibers_[32 * warp_ + other];
          fail("lanes of a warp meet in different warp operations");
        }
        warp.state[other] = READY;
      }
      waiting &= ~mask;
      any = true;
    }
    return any;
  }

  // The usual case: all lanes wait for all, at one operation.
  static bool meets_whole(const Warp& warp) {
    u32 differs = 0;
    for (u32 lane = 0; lane < 32; lane++) {
      differs |= (warp.state[lane] ^ AT_WARP) | ~warp.mask[lane] | (warp.seq[lane] ^ warp.seq[0]);
    }
    return !differs;
  }

  void open_barrier() {
    for (Fiber& fiber : fibers_) {
      const State state = fiber.warp->state[fiber.lane];
      context.fiber = &fiber;
      if (state == AT_WARP) fail("a warp operation that some lane of its mask never reaches");
      if (state == AT_BLOCK && n_done_) fail("a barrier that an ended thread never reaches");
    }
    for (Warp& warp : warps_) memset(warp.state, READY, sizeof warp.state);
  }

  // The frame of a stack on which nobody has begun.
  void* begin() {
    if (!memory_) map_stacks();
    begun_ = stacks_.back();
    stacks_.pop_back();
    return first_frame(begun_ + STACK_BYTES, fiber_main);
  }

  // Pages that no thread comes to are never there.
  void map_stacks() {
    void* memory = mmap(nullptr, N_STACK * STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for the stacks");
    memory_ = (u8*)memory;
    for (size_t i = N_STACK; i > 0; i--) stacks_.push_back(memory_ + (i - 1) * STACK_BYTES);
  }

  static void fiber_main();

  Thunk thunk_;
  void** args_;
  Order order_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  u32 lanes_[32];                    // of a whole warp, in their order
  u32 turn_, warp_, lane_, n_lane_;  // the warp whose turn it is, and the place of its next lane
  size_t n_done_;
  u8* memory_ = nullptr;
  std::vector<u8*> stacks_;  // that nobody uses
  u8* begun_;
  void* host_;
};

// Never destroyed: at the end of the program another thread may be in the middle of a launch.
static Block& running = *new Block;

void Block::fiber_main() { running.run_threads(); }
void yield(State state) { running.wait(state); }

void fail(const char* what) {
  const Index block = context.block, thread = context.fiber->thread;
  fprintf(stderr, "gpu_sim: %s, block (%u,%u,%u), thread (%u,%u,%u): %s\n", context.kernel,
          block.x, block.y, block.z, thread.x, thread.y, thread.z, what);
  abort();
}

// The linker's names for all of shared memory.
extern "C" __attribute__((visibility("hidden"))) u8 __start_gpu_shared[], __stop_gpu_shared[];

// Shared memory as it is before a block. On a device what was there before is there still, which
// may look right; here it is no number, neither as a float nor as a half. Before the first block of
// a launch that is all of it, before the others what the first one wrote and what lies between.
class Poison {
 public:
  void lay() { memset(from_, 0xff, (size_t)(to_ - from_)); }

  void look() {
    while (from_ < to_ && is_laid(from_)) from_ += WORD;
    while (to_ > from_ && is_laid(to_ - WORD)) to_ -= WORD;
  }

 private:
  static const size_t WORD = sizeof(u32);  // nothing in it is aligned to less

  static bool is_laid(const u8* at) { return *(const u32*)at == ~0u; }

  u8 *from_ = __start_gpu_shared, *to_ = __stop_gpu_shared;
};

void run_grid(const char* name, Thunk thunk, Index grid, Index block, void** args, Order order) {
  // Shared memory and the context are there once.
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  const u64 n_block = (u64)grid.x * grid.y * grid.z;
  running.shape(thunk, args, block, order);
  Poison poison;
  for (u64 i = 0; i < n_block; i++) {
    const u64 at = order.kind == Order::REVERSE ? n_block - 1 - i : i;
    const Index idx = {(u32)(at % grid.x), (u32)(at / grid.x % grid.y),
                       (u32)(at / grid.x / grid.y)};
    context = {nullptr, idx, block, grid, name};
    poison.lay();
    running.run();
    if (i == 0 && n_block > 1) poison.look();
  }
}

}  // namespace gpu_sim
