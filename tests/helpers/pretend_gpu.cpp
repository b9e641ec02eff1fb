// What torch's C++ asks of a build with CUDA: guards with streams and events that do nothing, and hooks that say that
// there are two GPUs. Without them autograd stops. Loaded by pretend_gpu.py.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

using namespace c10;
const Device GPU(DeviceType::CUDA, 0);
const Stream ONLY(Stream::DEFAULT, GPU);
#define AS const override

struct PretendGuard : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device getDevice() AS { return GPU; }
  Device exchangeDevice(Device) AS { return GPU; }
  Stream getStream(Device) const noexcept override { return ONLY; }
  Stream getDefaultStream(Device) AS { return ONLY; }
  Stream getNewStream(Device, int) AS { return ONLY; }
  Stream getStreamFromGlobalPool(Device, bool) AS { return ONLY; }
  Stream exchangeStream(Stream) const noexcept override { return ONLY; }
  DeviceIndex deviceCount() const noexcept override { return 2; }
  void record(void** event, const Stream&, DeviceIndex, EventFlag) AS { *event = nullptr; }
  void destroyEvent(void*, DeviceIndex) const noexcept override {}
  void block(void*, const Stream&) AS {}
  bool queryEvent(void*) AS { return true; }
  void synchronizeEvent(void*) AS {}
  bool queryStream(const Stream&) AS { return true; }
  void synchronizeStream(const Stream&) AS {}
  void recordDataPtrOnStream(const DataPtr&, const Stream&) AS {}
};
C10_REGISTER_GUARD_IMPL(CUDA, PretendGuard)

namespace at {
struct Pretend : CUDAHooksInterface {
  Pretend(CUDAHooksArgs) {}
  void init() AS {}
  void setCurrentDevice(DeviceIndex) AS {}
  void deviceSynchronize(DeviceIndex) AS {}
  bool hasCUDA() AS { return true; }
  bool isBuilt() AS { return true; }
  bool isAvailable() AS { return true; }
  bool hasPrimaryContext(DeviceIndex) AS { return true; }
  bool isPinnedPtr(const void*) AS { return false; }
  DeviceIndex deviceCount() AS { return 2; }
  int getNumGPUs() AS { return 2; }
  DeviceIndex getCurrentDevice() AS { return 0; }
  DeviceIndex current_device() AS { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) AS { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) AS { return 0; }
  Allocator* getPinnedMemoryAllocator() AS { return c10::GetCPUAllocator(); }
  Generator getNewGenerator(DeviceIndex) AS { return detail::createCPUGenerator(); }
  const Generator& getDefaultGenerator(DeviceIndex) AS { return detail::getDefaultCPUGenerator(); }
};
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", Pretend)
}  // namespace at
