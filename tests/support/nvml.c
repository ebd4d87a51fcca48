// A stand-in for NVIDIA's management library: cards that answer what a file says.
//
// The file has the library's path with `.conf` behind it. Its lines are a word and a number: the name
// of a function and the error that it returns, `cards` and the error that every question about a card
// returns, or a value. It is read at each call, so cards change while they are open. A function is
// left out by a flag that gives it another name: `-DnvmlShutdown=left_out`.
//
// The functions are those that `src/power/sensors/nvml.rs` has called, as NVIDIA's nvml.h types them.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned version, fan, speed; } FanSpeed;

static long long said(const char *word, long long otherwise) {
    static const char here = 0;
    char path[4096], key[64];
    Dl_info info;
    if (!dladdr(&here, &info)) return otherwise;
    snprintf(path, sizeof path, "%s.conf", info.dli_fname);
    FILE *file = fopen(path, "r");
    if (!file) return otherwise;
    long long value, found = otherwise;
    while (fscanf(file, "%63s %lld", key, &value) == 2)
        if (!strcmp(key, word)) found = value;
    fclose(file);
    return found;
}

static int fails(const char *function) {
    return (int)said(function, said("cards", 0));
}

static int number(const char *function, const char *word, long long otherwise, unsigned *answer) {
    int error = fails(function);
    if (!error) *answer = (unsigned)said(word, otherwise);
    return error;
}

static int text(int error, const char *answer, char *out, unsigned n) {
    if (!error) snprintf(out, n, "%s", answer);
    return error;
}

int nvmlInit_v2(void) { return (int)said("nvmlInit_v2", 0); }

int nvmlShutdown(void) { return 0; }

int nvmlSystemGetDriverVersion(char *version, unsigned n) {
    return text((int)said("nvmlSystemGetDriverVersion", 0), "550.54.15", version, n);
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)said("n_card", 1);
    return (int)said("nvmlDeviceGetCount_v2", 0);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **card) {
    *card = (void *)(uintptr_t)(i + 1);
    return (int)said("nvmlDeviceGetHandleByIndex_v2", 0);
}

int nvmlDeviceGetName(void *card, char *name, unsigned n) {
    return text(fails("nvmlDeviceGetName"), "NVIDIA GeForce RTX 3060", name, n);
}

int nvmlDeviceGetClockInfo(void *card, int type, unsigned *mhz) {
    const char *function = "nvmlDeviceGetClockInfo";
    return type == 2 ? number(function, "memory_mhz", 7501, mhz) : number(function, "mhz", 1777, mhz);
}

int nvmlDeviceGetUtilizationRates(void *card, Utilization *rates) {
    rates->memory = 12;
    return number("nvmlDeviceGetUtilizationRates", "percent", 35, &rates->gpu);
}

int nvmlDeviceGetMemoryInfo_v2(void *card, Memory *memory) {
    memory->total = 12ull << 30, memory->reserved = 0;
    memory->used = 3ull << 30, memory->free = 9ull << 30;
    return fails("nvmlDeviceGetMemoryInfo_v2");
}

int nvmlDeviceGetFanSpeed_v2(void *card, unsigned fan, unsigned *percent) {
    return number("nvmlDeviceGetFanSpeed_v2", "fan_percent", 40, percent);
}

int nvmlDeviceGetFanSpeedRPM(void *card, FanSpeed *speed) {
    return number("nvmlDeviceGetFanSpeedRPM", "rpm", 1500, &speed->speed);
}

int nvmlDeviceGetTemperature(void *card, int sensor, unsigned *celsius) {
    return number("nvmlDeviceGetTemperature", "celsius", 61, celsius);
}

int nvmlDeviceGetPowerUsage(void *card, unsigned *mw) {
    return number("nvmlDeviceGetPowerUsage", "mw", 120500, mw);
}

int nvmlDeviceGetTotalEnergyConsumption(void *card, unsigned long long *mj) {
    *mj = (unsigned long long)said("mj", 9000000);
    return fails("nvmlDeviceGetTotalEnergyConsumption");
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *card, unsigned long long *reasons) {
    *reasons = (unsigned long long)said("reasons", 1);
    return fails("nvmlDeviceGetCurrentClocksThrottleReasons");
}
