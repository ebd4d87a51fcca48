// A stand-in for libcuda.so.1 as CUDA 10.2 has it: what this project calls, and nothing newer.
//
// The program under test opens this library where it would open the driver, so that its loader,
// memory, launch arguments and error paths are the real ones. It is as strict as a driver, or
// stricter: PTX above ISA 6.5 or of another target is refused, calls want a current context, copies
// must lie inside one allocation, memory begins as NaN and ends at a page that faults. What ends the
// program: a write between the end of an allocation and that page, a module that is unloaded before
// its launches were waited for, a captured graph that nobody destroys.
//
// A file beside the library, of the same name and `.conf` behind it, directs it; one line each:
//
//   fail cuMemAlloc_v2 3 2      the third call of it answers 2 and does nothing
//   order reverse | mixed N     in which threads of a block run; reverse: blocks of a grid too
//   memory N                    bytes of the device
//   capability MAJOR MINOR      of a newer device, which takes PTX up to 7.0 and for sm_80 too
//   skip KERNEL [BLOCKS]        launches of it do nothing; or those whose grid is so wide alone
//   registers KERNEL N          of a thread of it
//   precompiled                 PTX is refused: only what was compiled before is loaded
//   log                         calls in their order to a file with `.log` behind its name, each with
//                               the kernel or the bytes that it is about
//   late CODE                   when a launch is refused, those before it fail: the next wait says so
//   discrete                    memory of the device's own, and not the host's
//   clock MS                    its clock goes on by so much with each launch, and else stands still
//   without NAME                such a function is not there; whoever copies the library sees to it
//   memory_clock KHZ            of its memory, which two bits a turn pass through each of 64 wires
//
// Whoever wants several devices with different fates copies the library: each copy has its own.
// `stand_in_direct` tells one that is open what is to fail from now on, and how its clock goes.
#include <dlfcn.h>
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <map>
#include <mutex>
#include <sstream>
#include <vector>

#include "fibers.h"

namespace {

enum Result {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  NO_BINARY_FOR_GPU = 209,
  INVALID_PTX = 218,
  UNSUPPORTED_PTX_VERSION = 222,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  STREAM_CAPTURE_INVALID = 901,
};

struct Module;

struct Function {
  std::string name;
  gpu_sim::Registered kernel;
  u32 n_thread_max;
  const Module* module;
};

// A launch with the arguments that it had when it was asked for.
struct Launch {
  const Function* function;
  gpu_sim::Index grid, block;
  std::vector<u64> args;
};

struct Stream {
  bool captures = false;
  std::vector<Launch> captured;
};

typedef std::vector<Launch> Graph;

struct Module {
  std::map<std::string, Function> functions;
};

struct Failure {
  u64 call;
  int result;
};

// An allocation: the whole mapping and what of it is the caller's.
struct Memory {
  char* mapping;
  size_t mapped;
  size_t n;
};

const size_t PAGE = 4096;
const size_t ALIGNMENT = 256;
const u8 SLACK = 0xa5;

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

[[noreturn]] void fail(const char* what) {
  fprintf(stderr, "gpu_sim: %s\n", what);
  abort();
}

// What lies behind an allocation, up to where it is rounded to.
void check_slack(u64 at, const Memory& memory) {
  for (size_t i = memory.n; i < round_up(memory.n, ALIGNMENT); i++) {
    if (((const u8*)at)[i] != SLACK) fail("something was written behind an allocation");
  }
}

struct Device {
  std::mutex mutex;
  std::map<u64, Memory> memory;
  std::map<std::string, u64> calls;
  std::map<std::string, Failure> failures;
  std::map<std::string, u32> skipped;  // the width of the grids, 0 for all
  std::map<std::string, u32> registers;
  bool takes_text = true;
  std::string path;  // of this library
  FILE* log = nullptr;
  int late = 0, pending = 0;           // the code that was ordered, and one that waits to be told
  std::map<const Module*, const void*> running;  // modules and the stream of their launches
  std::atomic<int> n_graph{0};         // captured and not destroyed
  std::atomic<u64> n_run{0};           // launches
  double launch_ms = -1;               // of each by the clock that was ordered, if there is one
  bool is_integrated = true;
  int memory_khz = 1600000;            // what the memory of a Jetson Nano has
  gpu_sim::Order order;
  size_t total = (size_t)3964 << 20;  // what a Jetson Nano with 4 GB reports
  size_t used = 0;
  int major = 5, minor = 3;

  Device() {
    Dl_info info;
    if (!dladdr((void*)&gpu_sim::run_grid, &info)) return;
    path = info.dli_fname;
    std::ifstream conf(path + ".conf");
    for (std::string line; std::getline(conf, line);) direct(line);
  }

  void direct(const std::string& line) {
    std::istringstream words(line);
    std::string verb, name;
    words >> verb;
    if (verb == "fail") {
      Failure failure{};
      words >> name >> failure.call >> failure.result;
      failures[name] = failure;
    } else if (verb == "order") {
      words >> name >> order.seed;
      order.kind = name == "reverse" ? gpu_sim::Order::REVERSE : gpu_sim::Order::MIXED;
    } else if (verb == "memory") {
      words >> total;
    } else if (verb == "capability") {
      words >> major >> minor;
    } else if (verb == "skip") {
      u32 n_block = 0;
      words >> name >> n_block;
      skipped[name] = n_block;
    } else if (verb == "registers") {
      words >> name >> registers[name];
    } else if (verb == "log") {
      if (log) fclose(log);
      log = fopen((path + ".log").c_str(), "w");
    } else if (verb == "precompiled") {
      takes_text = false;
    } else if (verb == "late") {
      words >> late;
    } else if (verb == "discrete") {
      is_integrated = false;
    } else if (verb == "clock") {
      words >> launch_ms;
    } else if (verb == "memory_clock") {
      words >> memory_khz;
    }
  }

  // What the driver answers before it looks at anything: a failure that was ordered.
  int enter(const char* name, const std::string& about) {
    std::lock_guard<std::mutex> lock(mutex);
    const u64 call = ++calls[name];
    if (log) {
      fprintf(log, "%s %s\n", name, about.c_str());
      fflush(log);
    }
    const auto failure = failures.find(name);
    const bool fails = failure != failures.end() && failure->second.call == call;
    if (fails && !strcmp(name, "cuLaunchKernel")) pending = late;
    return fails ? failure->second.result : 0;
  }

  // A wait for a stream, or for an event of one whose launches may go on: what is told at its end.
  int waited(const void* stream) {
    std::lock_guard<std::mutex> lock(mutex);
    for (auto it = running.begin(); stream && it != running.end();) {
      it = it->second == stream ? running.erase(it) : std::next(it);
    }
    for (const auto& [at, block] : memory) check_slack(at, block);
    const int told = pending;
    pending = 0;
    return told;
  }

  void launched(const Module* module, const void* stream) {
    std::lock_guard<std::mutex> lock(mutex);
    running[module] = stream;
  }

  bool runs(const Module* module) {
    std::lock_guard<std::mutex> lock(mutex);
    return running.count(module);
  }

  bool holds(u64 at, size_t n) {
    std::lock_guard<std::mutex> lock(mutex);
    auto after = memory.upper_bound(at);
    if (after == memory.begin()) return false;
    const auto& [start, block] = *--after;
    return at - start <= block.n && n <= block.n - (at - start);
  }
};

Device& device() {
  static Device the;
  return the;
}

thread_local void* current_context;

// The number after `.maxntid` in what follows a kernel's name, up to its body.
u32 threads_max(const std::string& ptx, size_t at) {
  const size_t body = ptx.find('{', at), limit = ptx.find(".maxntid", at);
  return limit < body ? (u32)atoi(ptx.c_str() + limit + 8) : 1024;
}

int load_module(const std::string& ptx, Module& module) {
  int major, minor;
  const char* version = strstr(ptx.c_str(), ".version ");
  if (!version || sscanf(version, ".version %d.%d", &major, &minor) != 2) return INVALID_PTX;
  const bool is_new = device().major >= 8;
  if (major * 10 + minor > (is_new ? 70 : 65)) return UNSUPPORTED_PTX_VERSION;
  const bool is_for_new = is_new && ptx.find(".target sm_80") != std::string::npos;
  if (!is_for_new && ptx.find(".target sm_53") == std::string::npos) return NO_BINARY_FOR_GPU;
  for (size_t at = 0; (at = ptx.find(".entry ", at)) != std::string::npos;) {
    at += 7;
    const std::string name = ptx.substr(at, ptx.find_first_of("(\n \t", at) - at);
    const gpu_sim::Registered kernel = gpu_sim::find_kernel(name);
    if (!kernel.thunk) {
      fprintf(stderr, "gpu_sim: the PTX has %s, the simulator does not\n", name.c_str());
      return INVALID_IMAGE;
    }
    module.functions[name] = {name, kernel, threads_max(ptx, at), &module};
  }
  return SUCCESS;
}

const std::string COMPILED = "compiled ";

void run(Launch launch) {
  device().n_run++;
  const auto skipped = device().skipped.find(launch.function->name);
  if (skipped != device().skipped.end()) {
    if (!skipped->second || skipped->second == launch.grid.x) return;
  }
  std::vector<void*> args;
  for (u64& word : launch.args) args.push_back(&word);
  gpu_sim::run_grid(launch.function->name.c_str(), launch.function->kernel.thunk, launch.grid,
                    launch.block, args.data(), device().order);
}

int attribute(int which) {
  switch (which) {
    case 1: return 1024;    // threads of a block
    case 8: return 49152;   // shared memory of a block
    case 10: return 32;     // warp
    case 12: return 32768;  // registers of a block
    case 16: return 1;      // multiprocessors
    case 18: return device().is_integrated;
    case 36: return device().memory_khz;
    case 37: return 64;     // wires of its memory
    case 75: return device().major;
    case 76: return device().minor;
    default: return -1;
  }
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int
#define ENTER \
  if (const int ordered = device().enter(__func__, "")) return ordered;
#define ENTER_CONTEXT ENTER_ABOUT("")
#define ENTER_ABOUT(about)                                                 \
  if (const int ordered = device().enter(__func__, about)) return ordered; \
  if (!current_context) return INVALID_CONTEXT;

// Lines as in a `.conf` file: failures, launches to skip and a clock in place of those before, and
// calls are counted anew.
extern "C" __attribute__((visibility("default"))) void stand_in_direct(const char* lines) {
  Device& dev = device();
  std::lock_guard<std::mutex> lock(dev.mutex);
  dev.calls.clear();
  dev.failures.clear();
  dev.skipped.clear();
  dev.launch_ms = -1;
  std::istringstream text(lines);
  for (std::string line; std::getline(text, line);) dev.direct(line);
}

API cuInit(u32) {
  ENTER return SUCCESS;
}
API cuDriverGetVersion(int* version) {
  ENTER* version = 10020;
  return SUCCESS;
}
API cuGetErrorName(int result, const char** name) {
  static const std::map<int, const char*> names = {
      {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
      {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
      {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
      {INVALID_PTX, "CUDA_ERROR_INVALID_PTX"},
      {UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"},
      {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
      {702, "CUDA_ERROR_LAUNCH_TIMEOUT"},
      {719, "CUDA_ERROR_LAUNCH_FAILED"},
  };
  const auto found = names.find(result);
  if (found == names.end()) return INVALID_VALUE;
  *name = found->second;
  return SUCCESS;
}
API cuDeviceGetCount(int* n) {
  ENTER* n = 1;
  return SUCCESS;
}
API cuDeviceGet(int* out, int ordinal) {
  ENTER if (ordinal != 0) return INVALID_DEVICE;
  *out = 0;
  return SUCCESS;
}
API cuDeviceGetName(char* name, int n, int) {
  ENTER snprintf(name, n, "simulated sm_53");
  return SUCCESS;
}
API cuDeviceTotalMem_v2(size_t* n, int) {
  ENTER* n = device().total;
  return SUCCESS;
}
API cuDeviceGetAttribute(int* value, int which, int) {
  ENTER if (which > 106) return INVALID_VALUE;  // CUDA 10.2 knows no more of them
  *value = attribute(which);
  return SUCCESS;
}

API cuCtxCreate_v2(void** out, u32, int) {
  ENTER current_context = *out = new int;
  return SUCCESS;
}
API cuCtxDestroy_v2(void* context) {
  ENTER if (current_context == context) current_context = nullptr;
  if (device().n_graph) fail("a captured graph was never destroyed");
  delete (int*)context;
  return SUCCESS;
}
API cuCtxSetCurrent(void* context) {
  ENTER current_context = context;
  return SUCCESS;
}

API cuMemGetInfo_v2(size_t* free, size_t* total) {
  ENTER_CONTEXT* total = device().total;
  *free = device().total - device().used;
  return SUCCESS;
}
API cuMemAlloc_v2(u64* out, size_t n) {
  ENTER_ABOUT(std::to_string(n)) if (!n) return INVALID_VALUE;
  Device& dev = device();
  std::lock_guard<std::mutex> lock(dev.mutex);
  if (n > dev.total || dev.used > dev.total - n) return OUT_OF_MEMORY;
  const size_t need = round_up(n, ALIGNMENT), mapped = round_up(need, PAGE) + PAGE;
  char* mapping = (char*)mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return OUT_OF_MEMORY;
  mprotect(mapping + mapped - PAGE, PAGE, PROT_NONE);
  char* start = mapping + mapped - PAGE - need;
  memset(start, 0xff, n);
  memset(start + n, SLACK, need - n);
  dev.memory[(u64)start] = {mapping, mapped, n};
  dev.used += n;
  *out = (u64)start;
  return SUCCESS;
}
API cuMemFree_v2(u64 at) {
  ENTER_CONTEXT Device& dev = device();
  std::lock_guard<std::mutex> lock(dev.mutex);
  const auto found = dev.memory.find(at);
  if (found == dev.memory.end()) return INVALID_VALUE;
  check_slack(at, found->second);
  munmap(found->second.mapping, found->second.mapped);
  dev.used -= found->second.n;
  dev.memory.erase(found);
  return SUCCESS;
}
API cuMemcpyHtoDAsync_v2(u64 to, const void* from, size_t n, void*) {
  ENTER_CONTEXT if (!device().holds(to, n)) return INVALID_VALUE;
  memcpy((void*)to, from, n);
  return SUCCESS;
}
API cuMemcpyDtoHAsync_v2(void* to, u64 from, size_t n, void*) {
  ENTER_CONTEXT if (!device().holds(from, n)) return INVALID_VALUE;
  memcpy(to, (const void*)from, n);
  return SUCCESS;
}
API cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t n, void*) {
  ENTER_CONTEXT if (!device().holds(to, n) || !device().holds(from, n)) return INVALID_VALUE;
  memmove((void*)to, (const void*)from, n);
  return SUCCESS;
}
API cuMemsetD8Async(u64 at, u8 value, size_t n, void*) {
  ENTER_CONTEXT if (!device().holds(at, n)) return INVALID_VALUE;
  memset((void*)at, value, n);
  return SUCCESS;
}

API cuStreamCreate(void** out, u32) {
  ENTER_CONTEXT* out = new Stream;
  return SUCCESS;
}
API cuStreamDestroy_v2(void* stream) {
  ENTER_CONTEXT delete (Stream*)stream;
  return SUCCESS;
}
API cuStreamSynchronize(void* stream) {
  // Even where a failure was ordered nothing runs any more, as with a driver.
  const int told = device().waited(stream);
  ENTER_CONTEXT return told;
}
API cuEventCreate(void** out, u32) {
  ENTER_CONTEXT* out = new double(0);
  return SUCCESS;
}
API cuEventDestroy_v2(void* event) {
  ENTER_CONTEXT delete (double*)event;
  return SUCCESS;
}
API cuEventRecord(void* event, void*) {
  ENTER_CONTEXT const auto now = std::chrono::steady_clock::now().time_since_epoch();
  const double ms = std::chrono::duration<double, std::milli>(now).count();
  const Device& dev = device();
  *(double*)event = dev.launch_ms < 0 ? ms : dev.launch_ms * dev.n_run;
  return SUCCESS;
}
API cuEventSynchronize(void*) {
  ENTER_CONTEXT return device().waited(nullptr);
}
API cuEventElapsedTime(float* ms, void* start, void* end) {
  ENTER_CONTEXT* ms = (float)(*(double*)end - *(double*)start);
  return SUCCESS;
}

API cuModuleLoadDataEx(void** out, const void* image, u32, const int*, void**) {
  ENTER_CONTEXT Module* module = new Module;
  const char* ptx = (const char*)image;
  if (!strncmp(ptx, COMPILED.c_str(), COMPILED.size())) {
    ptx += COMPILED.size();
  } else if (!device().takes_text) {
    delete module;
    return INVALID_PTX;
  }
  if (const int refused = load_module(ptx, *module)) {
    delete module;
    return refused;
  }
  *out = module;
  return SUCCESS;
}
// Compiled code is the PTX behind a word of its own.
API cuLinkCreate_v2(u32, int*, void**, void** state) {
  ENTER_CONTEXT* state = new std::string;
  return SUCCESS;
}
API cuLinkAddData_v2(void* state, int kind, void* data, size_t n, const char*, u32, int*, void**) {
  ENTER_CONTEXT if (kind != 1 || !n || ((char*)data)[n - 1]) return INVALID_VALUE;
  if (!device().takes_text) return INVALID_PTX;
  Module module;
  if (const int refused = load_module((const char*)data, module)) return refused;
  *(std::string*)state = COMPILED + std::string((const char*)data);
  return SUCCESS;
}
API cuLinkComplete(void* state, void** image, size_t* n) {
  ENTER_CONTEXT std::string& code = *(std::string*)state;
  *image = code.data();
  *n = code.size() + 1;
  return SUCCESS;
}
API cuLinkDestroy(void* state) {
  ENTER_CONTEXT delete (std::string*)state;
  return SUCCESS;
}
API cuModuleUnload(void* module) {
  ENTER_CONTEXT if (device().runs((Module*)module)) fail("a module is unloaded under its kernels");
  delete (Module*)module;
  return SUCCESS;
}
API cuModuleGetFunction(void** out, void* module, const char* name) {
  ENTER_ABOUT(name) auto& functions = ((Module*)module)->functions;
  const auto found = functions.find(name);
  if (found == functions.end()) return NOT_FOUND;
  *out = &found->second;
  return SUCCESS;
}
API cuFuncGetAttribute(int* value, int which, void* function) {
  ENTER_CONTEXT if (!function) return INVALID_HANDLE;
  const Function& of = *(const Function*)function;
  const auto ordered = device().registers.find(of.name);
  const u32 n_register = ordered == device().registers.end() ? 32 : ordered->second;
  *value = (int)(which == 0 ? of.n_thread_max : which == 4 ? n_register : 0);
  return SUCCESS;
}
API cuLaunchKernel(void* handle, u32 grid_x, u32 grid_y, u32 grid_z, u32 block_x, u32 block_y,
                   u32 block_z, u32 shared_bytes, void* stream, void** args, void**) {
  const Function* function = (const Function*)handle;
  ENTER_ABOUT(function->name)
  const u64 n_thread = (u64)block_x * block_y * block_z;
  if (!grid_x || !grid_y || !grid_z || grid_y > 65535 || grid_z > 65535) return INVALID_VALUE;
  if (!n_thread || n_thread > function->n_thread_max || shared_bytes) return INVALID_VALUE;
  Launch launch{function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, {}};
  // An argument has eight bytes at most, and the caller has eight for each.
  for (u32 i = 0; i < function->kernel.n_arg; i++) {
    u64 word;
    memcpy(&word, args[i], sizeof word);
    launch.args.push_back(word);
  }
  Stream& of = *(Stream*)stream;
  if (of.captures) {
    of.captured.push_back(launch);
  } else {
    device().launched(function->module, stream);
    run(launch);
  }
  return SUCCESS;
}

API cuStreamBeginCapture_v2(void* stream, int) {
  ENTER_CONTEXT Stream& of = *(Stream*)stream;
  if (of.captures) return STREAM_CAPTURE_INVALID;
  of.captures = true;
  of.captured.clear();
  return SUCCESS;
}
API cuStreamEndCapture(void* stream, void** graph) {
  // Even where a failure was ordered the stream records no more, as with a driver.
  Stream& of = *(Stream*)stream;
  const bool captured = of.captures;
  of.captures = false;
  ENTER_CONTEXT if (!captured) return STREAM_CAPTURE_INVALID;
  *graph = new Graph(of.captured);
  device().n_graph++;
  return SUCCESS;
}
API cuGraphInstantiate(void** executable, void* graph, void**, char*, size_t) {
  ENTER_CONTEXT* executable = new Graph(*(Graph*)graph);
  return SUCCESS;
}
API cuGraphLaunch(void* executable, void* stream) {
  ENTER_CONTEXT for (const Launch& launch : *(Graph*)executable) {
    device().launched(launch.function->module, stream);
    run(launch);
  }
  return SUCCESS;
}
API cuGraphExecDestroy(void* executable) {
  ENTER_CONTEXT delete (Graph*)executable;
  return SUCCESS;
}
API cuGraphDestroy(void* graph) {
  ENTER_CONTEXT device().n_graph--;
  delete (Graph*)graph;
  return SUCCESS;
}
