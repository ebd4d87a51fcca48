// Thread blocks as fibers.
//
//   worker    a thread of the system; takes blocks until none are left
//   block     its CUDA threads, each a fiber with a stack of its own
//   round     every warp: run each ready lane until it waits or ends, then let lanes that met at a
//             warp operation go on, until nobody can; when all warps stand, the barrier opens
//
// What would hang or corrupt on the device ends the program here, with kernel, block and thread:
// barriers that some threads never reach, warp operations that some lanes of the mask miss.
#include "fibers.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <thread>
#include <vector>

namespace gpu_sim {

thread_local Context context;

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

static thread_local Thunk running;
static thread_local void** running_args;

static void fiber_main() {
  running(running_args);
  for (;;) yield(DONE);
}

void yield(State state) {
  Fiber* fiber = context.fiber;
  fiber->state = state;
  gpu_sim_switch(&fiber->stack, context.scheduler_stack);
}

void fail(const char* what) {
  const Index block = context.block, thread = context.fiber->thread;
  fprintf(stderr, "gpu_sim: %s, block (%u,%u,%u), thread (%u,%u,%u): %s\n", context.kernel,
          block.x, block.y, block.z, thread.x, thread.y, thread.z, what);
  abort();
}

static const size_t STACK_BYTES = 64 << 10;

class Worker {
 public:
  ~Worker() { give_back(); }

  void run_block(const char* name, Thunk thunk, void** args, Index grid, Index dim, Index block,
                 Order order) {
    const u32 n = dim.x * dim.y * dim.z, n_warp = (n + 31) / 32;
    reserve(n);
    fibers_.resize(n);
    warps_.assign(n_warp, Warp{});
    context = {nullptr, nullptr, block, dim, grid, name};
    running = thunk;
    running_args = args;
    for (u32 i = 0; i < n; i++) {
      const Index at = {i % dim.x, i / dim.x % dim.y, i / dim.x / dim.y};
      void* frame = first_frame(stacks_ + (i + 1) * STACK_BYTES, fiber_main);
      fibers_[i] = {frame, &warps_[i / 32], at, 0, 0, (u8)(i % 32), READY};
    }
    u32 n_done = 0;
    while (true) {
      for (u32 i = 0; i < n_warp; i++) {
        const u32 first = 32 * place(i, n_warp, order);
        n_done += run_warp(first, n - first < 32 ? n - first : 32, order);
      }
      if (n_done == n) return;
      open_barrier(n_done);
    }
  }

 private:
  static u32 place(u32 i, u32 n, Order order) {
    if (order.kind == Order::FORWARD) return i;
    if (order.kind == Order::REVERSE) return n - 1 - i;
    // 7919 is a prime larger than any block, so every place comes once.
    return (u32)((i * 7919ull + order.seed) % n);
  }

  // Runs a warp until each lane has ended or stands at a barrier; the lanes that ended.
  u32 run_warp(u32 first, u32 n_lane, Order order) {
    u32 n_done = 0;
    for (bool again = true; again;) {
      u32 waiting = 0;
      for (u32 i = 0; i < n_lane; i++) {
        Fiber& fiber = fibers_[first + place(i, n_lane, order)];
        if (fiber.state == READY) {
          context.fiber = &fiber;
          gpu_sim_switch(&context.scheduler_stack, fiber.stack);
          if (fiber.state == DONE) n_done++;
        }
        if (fiber.state == AT_WARP) waiting |= 1u << fiber.lane;
      }
      again = release(first, n_lane, waiting);
    }
    return n_done;
  }

  // Lets those lanes go on that stand at the same warp operation as all of their mask.
  bool release(u32 first, u32 n_lane, u32 waiting) {
    const u32 present = n_lane == 32 ? ~0u : (1u << n_lane) - 1;
    bool any = false;
    for (u32 lane = 0; lane < n_lane; lane++) {
      Fiber& fiber = fibers_[first + lane];
      const u32 mask = fiber.mask & present;
      if (fiber.state != AT_WARP || (waiting & mask) != mask) continue;
      for (u32 other = 0; other < n_lane; other++) {
        if (!((mask >> other) & 1)) continue;
        Fiber& peer = fibers_[first + other];
        if (peer.mask != fiber.mask || peer.seq != fiber.seq) {
          context.fiber = &peer;
          fail("lanes of a warp meet in different warp operations");
        }
        peer.state = READY;
      }
      waiting &= ~mask;
      any = true;
    }
    return any;
  }

  void open_barrier(u32 n_done) {
    for (Fiber& fiber : fibers_) {
      context.fiber = &fiber;
      if (fiber.state == AT_WARP) fail("a warp operation that some lane of its mask never reaches");
      if (fiber.state == AT_BLOCK && n_done) fail("a barrier that an ended thread never reaches");
    }
    for (Fiber& fiber : fibers_) fiber.state = READY;
  }

  void reserve(u32 n) {
    if (n <= n_stack_) return;
    give_back();
    void* memory = mmap(nullptr, n * STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      fprintf(stderr, "gpu_sim: no memory for %u stacks\n", n);
      abort();
    }
    stacks_ = (u8*)memory;
    n_stack_ = n;
  }

  void give_back() {
    if (stacks_) munmap(stacks_, n_stack_ * STACK_BYTES);
    stacks_ = nullptr;
  }

  u8* stacks_ = nullptr;
  u32 n_stack_ = 0;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
};

void run_grid(const char* name, Thunk thunk, Index grid, Index block, void** args, Order order,
              unsigned n_threads) {
  const u64 n_block = (u64)grid.x * grid.y * grid.z;
  std::atomic<u64> next{0};
  const auto work = [&] {
    Worker worker;
    for (u64 i; (i = next++) < n_block;) {
      const Index at = {(u32)(i % grid.x), (u32)(i / grid.x % grid.y),
                        (u32)(i / grid.x / grid.y)};
      worker.run_block(name, thunk, args, grid, block, at, order);
    }
  };
  std::vector<std::thread> others;
  for (u64 i = 1; i < n_threads && i < n_block; i++) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
}

}  // namespace gpu_sim
