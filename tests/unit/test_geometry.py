from miriam import zoo
from miriam.device.sim.spec import MEASURED
from miriam.profile import launch_key


def test_blocks_of_an_sm_are_those_that_the_driver_found_for_every_kernel_of_the_zoo():
    profiles = zoo.profiles()
    wrong = []
    for program in (zoo.load(name) for kernels in zoo.KERNELS for name in zoo.names(kernels)):
        if "-naive-" in program.name and profiles.program(MEASURED.name, program) is None:
            continue
        for step in program.launches:
            kernel = program.kernels[step.kernel]
            profile = profiles.launch(MEASURED.name, launch_key(kernel, step))
            assert profile is not None
            fits = MEASURED.geometry.residency(kernel)
            if fits != profile.blocks_per_sm:
                wrong.append((kernel.name, kernel.threads, kernel.registers, fits, profile.blocks_per_sm))
    assert not wrong
