"""The descriptor pool of this package alone: equal message names elsewhere do not clash."""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
