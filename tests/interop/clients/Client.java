// Asks a gRPC server many times, with bytes that it does not look at, and prints what became of it.
//
// Usage: java Client ADDRESS METHOD FILE CALLS AT_A_TIME DEADLINE_SECONDS

import io.grpc.CallOptions;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.netty.NettyChannelBuilder;
import io.grpc.stub.ClientCalls;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

public final class Client {
  private static final Map<String, Integer> codes = new TreeMap<>();
  private static final Map<String, Integer> texts = new TreeMap<>();
  private static final Map<String, Integer> sizes = new TreeMap<>();

  private static final MethodDescriptor.Marshaller<byte[]> RAW =
      new MethodDescriptor.Marshaller<byte[]>() {
        @Override
        public InputStream stream(byte[] value) {
          return new ByteArrayInputStream(value);
        }

        @Override
        public byte[] parse(InputStream stream) {
          try {
            return stream.readAllBytes();
          } catch (IOException error) {
            throw new IllegalStateException(error);
          }
        }
      };

  public static void main(String[] given) throws Exception {
    String[] place = given[0].split(":");
    byte[] request = Files.readAllBytes(Paths.get(given[2]));
    AtomicInteger left = new AtomicInteger(Integer.parseInt(given[3]));
    long millis = (long) (1000 * Double.parseDouble(given[5]));
    ManagedChannel channel =
        NettyChannelBuilder.forAddress(place[0], Integer.parseInt(place[1]))
            .usePlaintext()
            .maxInboundMessageSize(64 << 20)
            .build();
    MethodDescriptor<byte[], byte[]> method =
        MethodDescriptor.<byte[], byte[]>newBuilder(RAW, RAW)
            .setType(MethodDescriptor.MethodType.UNARY)
            .setFullMethodName(given[1].substring(1))
            .build();
    Thread[] all = new Thread[Integer.parseInt(given[4])];
    for (int at = 0; at < all.length; at++) {
      all[at] =
          new Thread(
              () -> {
                while (left.getAndDecrement() > 0) {
                  CallOptions within =
                      CallOptions.DEFAULT.withDeadlineAfter(millis, TimeUnit.MILLISECONDS);
                  try {
                    byte[] answer =
                        ClientCalls.blockingUnaryCall(channel, method, within, request);
                    told(Status.OK, answer.length);
                  } catch (RuntimeException error) {
                    told(Status.fromThrowable(error), -1);
                  }
                }
              });
      all[at].start();
    }
    for (Thread one : all) {
      one.join();
    }
    channel.shutdown().awaitTermination(5, TimeUnit.SECONDS);
    System.out.println(
        "{\"codes\": " + json(codes) + ", \"texts\": " + json(texts) + ", \"sizes\": " + json(sizes)
            + "}");
  }

  private static synchronized void told(Status status, int size) {
    codes.merge(Integer.toString(status.getCode().value()), 1, Integer::sum);
    String text = status.getDescription();
    texts.merge(text == null ? "" : text, 1, Integer::sum);
    if (size >= 0) {
      sizes.merge(Integer.toString(size), 1, Integer::sum);
    }
  }

  private static String json(Map<String, Integer> map) {
    StringBuilder out = new StringBuilder("{");
    map.forEach(
        (key, count) -> {
          if (out.length() > 1) {
            out.append(", ");
          }
          String plain = key.replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", "\\n");
          out.append('"').append(plain).append("\": ").append(count);
        });
    return out.append('}').toString();
  }
}
