// Networks as one writes them down first: a thread for each output, every operand from global memory.
//
// Maps are (channels, height, width), one block of a launch does one channel. A block has a thread for each output
// of a tile that begins at (top, left), so a larger map takes several launches. Numbers are fp32.

#define ONE_CHANNEL extern "C" __global__ void __launch_bounds__(1024)

struct Place {
    int row, col, at; // at: in the output
};

__device__ Place place(int height, int width, int top, int left) {
    const int row = top + threadIdx.y, col = left + threadIdx.x;
    return {row, col, (static_cast<int>(blockIdx.x) * height + row) * width + col};
}

__device__ float activated(float value, int relu) { return relu && value < 0 ? 0 : value; }

ONE_CHANNEL convolution(const float *x, const float *weight, const float *bias, float *y, int channels, int height,
                        int width, int kernel, int stride, int padding, int out_height, int out_width, int top, int left,
                        int relu) {
    const Place to = place(out_height, out_width, top, left);
    float sum = bias ? bias[blockIdx.x] : 0;
    for (int c = 0; c < channels; c++)
        for (int i = 0; i < kernel; i++)
            for (int j = 0; j < kernel; j++) {
                const int row = to.row * stride - padding + i, col = to.col * stride - padding + j;
                if (row >= 0 && row < height && col >= 0 && col < width)
                    sum += x[(c * height + row) * width + col] *
                           weight[((blockIdx.x * channels + c) * kernel + i) * kernel + j];
            }
    y[to.at] = activated(sum, relu);
}

ONE_CHANNEL max_pool(const float *x, float *y, int height, int width, int kernel, int stride, int padding,
                     int out_height, int out_width, int top, int left, int relu) {
    const Place to = place(out_height, out_width, top, left);
    float most = __int_as_float(0xff800000); // less than anything
    for (int i = 0; i < kernel; i++)
        for (int j = 0; j < kernel; j++) {
            const int row = to.row * stride - padding + i, col = to.col * stride - padding + j;
            if (row >= 0 && row < height && col >= 0 && col < width) {
                const float value = x[(blockIdx.x * height + row) * width + col];
                most = value > most ? value : most;
            }
        }
    y[to.at] = activated(most, relu);
}

// Padding counts as zeros.
ONE_CHANNEL average_pool(const float *x, float *y, int height, int width, int kernel, int stride, int padding,
                         int out_height, int out_width, int top, int left, int relu) {
    const Place to = place(out_height, out_width, top, left);
    float sum = 0;
    for (int i = 0; i < kernel; i++)
        for (int j = 0; j < kernel; j++) {
            const int row = to.row * stride - padding + i, col = to.col * stride - padding + j;
            if (row >= 0 && row < height && col >= 0 && col < width)
                sum += x[(blockIdx.x * height + row) * width + col];
        }
    y[to.at] = activated(sum / (kernel * kernel), relu);
}

// What is left of a batch norm when a network is trained; in place.
ONE_CHANNEL batch_norm(float *y, const float *scale, const float *shift, int height, int width, int top, int left,
                       int relu) {
    const Place to = place(height, width, top, left);
    y[to.at] = activated(y[to.at] * scale[blockIdx.x] + shift[blockIdx.x], relu);
}

// The end of a residual block; in place.
ONE_CHANNEL add(const float *x, float *y, int height, int width, int top, int left, int relu) {
    const Place to = place(height, width, top, left);
    y[to.at] = activated(y[to.at] + x[to.at], relu);
}

// A block of one thread for each output.
extern "C" __global__ void linear(const float *x, const float *weight, const float *bias, float *y, int inputs, int relu) {
    float sum = bias[blockIdx.x];
    for (int i = 0; i < inputs; i++) sum += weight[blockIdx.x * inputs + i] * x[i];
    y[blockIdx.x] = activated(sum, relu);
}

__device__ float sigmoid(float x) { return 1 / (1 + expf(-x)); }

__device__ float dot(const float *weight, const float *x, int n) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += weight[i] * x[i];
    return sum;
}

// One step of a recurrent layer, a thread for each of its units. The state is read from `before` and written to
// `after`; before the first step both of them are undefined and taken as zero.

extern "C" __global__ void lstm_step(const float *x, const float *before, float *after, float *cell, const float *inner,
                                     const float *inner_bias, const float *recur, const float *recur_bias, int features,
                                     int hidden, int first) {
    const int unit = blockIdx.x * blockDim.x + threadIdx.x;
    if (unit >= hidden) return;
    float gates[4];
    for (int g = 0; g < 4; g++) {
        const int row = g * hidden + unit;
        gates[g] = inner_bias[row] + recur_bias[row] + dot(inner + row * features, x, features);
        if (!first) gates[g] += dot(recur + row * hidden, before, hidden);
    }
    const float held = first ? 0 : sigmoid(gates[1]) * cell[unit];
    const float now = held + sigmoid(gates[0]) * tanhf(gates[2]);
    cell[unit] = now;
    after[unit] = sigmoid(gates[3]) * tanhf(now);
}

extern "C" __global__ void gru_step(const float *x, const float *before, float *after, const float *inner,
                                    const float *inner_bias, const float *recur, const float *recur_bias, int features,
                                    int hidden, int first) {
    const int unit = blockIdx.x * blockDim.x + threadIdx.x;
    if (unit >= hidden) return;
    float in[3], back[3];
    for (int g = 0; g < 3; g++) {
        const int row = g * hidden + unit;
        in[g] = inner_bias[row] + dot(inner + row * features, x, features);
        back[g] = recur_bias[row];
        if (!first) back[g] += dot(recur + row * hidden, before, hidden);
    }
    const float update = sigmoid(in[1] + back[1]), now = tanhf(in[2] + sigmoid(in[0] + back[0]) * back[2]);
    after[unit] = (1 - update) * now + (first ? 0 : update * before[unit]);
}
